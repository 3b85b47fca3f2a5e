"""The shell that stays open for the facts of a plan, as a real process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from polydev.host_setup.facts_over_one_shell import RootShell


class Client:
    """A stand-in for paramiko's client, with a shell of this machine and user."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(["sh"], stdin=pipe, stdout=pipe, text=True)

    def exec_command(self, command: str) -> tuple[Any, Any, None]:
        assert command == "sudo -H -n sh"
        return self.process.stdin, self.process.stdout, None


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.process.kill()
    client.process.communicate()


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("printf 'a\\nb\\n'", ["a", "b"]),
        ("printf 'no end'", ["no end"]),
        ("printf 'a\\n\\n'", ["a", ""]),
        ("true", []),
        ("echo 'two\nlines'", ["two", "lines"]),
        ("cat", []),
        ("echo not heard >&2; echo heard", ["heard"]),
        ("sh -c 'exit 3'", None),
        ("no-such-program", None),
    ],
)
def test_fact_shell_returns_output_of_each_command(
    client: Client, command: str, lines: list[str] | None
) -> None:
    shell = RootShell(client)
    assert shell.output_of("echo before") == ["before"]
    assert shell.output_of(command) == lines
    assert shell.output_of("echo after") == ["after"]


def test_ended_fact_shell_returns_none(client: Client) -> None:
    shell = RootShell(client)
    client.process.kill()
    client.process.wait()
    assert shell.output_of("echo a") is None
    assert shell.output_of("echo b") is None
