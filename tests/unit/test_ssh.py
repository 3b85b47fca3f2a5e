"""The words with which programs of this machine reach a host."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.ssh import SshTarget

DATA = {
    "ssh_hostname": "198.51.100.2",
    "ssh_port": "2222",
    "ssh_user": "deploy",
    "ssh_key": "~/.ssh/key",
    "ssh_known_hosts_file": "~/.ssh/known",
}


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> SshTarget:
    monkeypatch.setenv("HOME", "/home/ada")
    return SshTarget.from_data("browsers", DATA)


def test_it_is_read_from_what_pyinfra_reads(target: SshTarget) -> None:
    assert target == SshTarget(
        "browsers",
        "198.51.100.2",
        "deploy",
        2222,
        Path("/home/ada/.ssh/key"),
        Path("/home/ada/.ssh/known"),
    )


def test_a_name_alone_is_enough() -> None:
    target = SshTarget.from_data("browsers.example", {})
    assert (target.destination, target.port) == ("browsers.example", 22)
    assert "-i" not in target.options()
    assert not any("UserKnownHostsFile" in word for word in target.options())


def test_nobody_is_asked_and_nobody_unknown_is_trusted(target: SshTarget) -> None:
    options = target.options()
    for word in ("BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"):
        assert options[options.index(word) - 1] == "-o"
    assert "UserKnownHostsFile=/home/ada/.ssh/known" in options
    assert options[options.index("-p") + 1] == "2222"


def test_a_dead_connection_is_noticed(target: SshTarget) -> None:
    assert {"ServerAliveInterval=5", "ServerAliveCountMax=3"} <= set(target.options())
    assert "ConnectTimeout=3" in target.options(timeout_seconds=3)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_a_commands_words_arrive_as_they_are(words: list[str]) -> None:
    argv = SshTarget("browsers", "198.51.100.2").argv(*words)
    assert argv[-3:-1] == ["198.51.100.2", "--"]
    assert shlex.split(argv[-1]) == ["sudo", "-n", *words]


def test_rsync_uses_the_same_words(target: SshTarget) -> None:
    assert shlex.split(target.rsync_shell()) == ["ssh", *target.options()]
