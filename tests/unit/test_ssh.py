"""Command lines of ssh and rsync to a host."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydev.processes import run
from polydev.ssh import SshTarget, ssh_option

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


def test_target_is_read_from_pyinfra_settings(target: SshTarget) -> None:
    assert target == SshTarget(
        "browsers",
        "198.51.100.2",
        "deploy",
        2222,
        Path("/home/ada/.ssh/key"),
        Path("/home/ada/.ssh/known"),
    )


def test_target_of_a_name_alone() -> None:
    target = SshTarget.from_data("browsers.example", {})
    assert (target.destination, target.port) == ("browsers.example", None)
    assert "-i" not in target.options()
    assert not any("UserKnownHostsFile" in word for word in target.options())


def test_ssh_never_prompts_and_checks_host_keys(target: SshTarget) -> None:
    options = target.options()
    for word in ("BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"):
        assert options[options.index(word) - 1] == "-o"
    assert "UserKnownHostsFile=/home/ada/.ssh/known" in options
    assert options[options.index("-p") + 1] == "2222"


def test_ssh_detects_a_dead_connection(target: SshTarget) -> None:
    assert {"ServerAliveInterval=5", "ServerAliveCountMax=6"} <= set(target.options())
    assert "ConnectTimeout=3" in target.options(timeout_seconds=3)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_command_arguments_are_quoted(words: list[str]) -> None:
    argv = SshTarget("browsers", "198.51.100.2").argv(*words)
    assert argv[-3:-1] == ["198.51.100.2", "--"]
    assert shlex.split(argv[-1]) == ["sudo", "-n", *words]


def resolved(target: SshTarget, config: Path) -> dict[str, str]:
    """Return the options that ssh itself derives from arguments and configuration."""
    config.touch()
    words = [word for word in target.options() if word != "none"]
    done = run(["ssh", "-G", "-F", config, *words, target.destination])
    lines = (line.partition(" ") for line in done.stdout.splitlines())
    return {key: value for key, _, value in lines}


class TestSshConfiguration:
    def test_ssh_config_applies_if_the_inventory_has_no_value(self, tmp_path: Path) -> None:
        config = tmp_path / "config"
        config.write_text(
            "Host box\n HostName 192.0.2.7\n Port 2222\n User ada\n IdentityFile /k\n"
        )
        found = resolved(SshTarget.from_data("box", {}), config)
        wanted = {"hostname": "192.0.2.7", "port": "2222", "user": "ada", "identityfile": "/k"}
        assert wanted.items() <= found.items()

    def test_inventory_overrides_ssh_config(self, tmp_path: Path) -> None:
        config = tmp_path / "config"
        config.write_text("Host box\n Port 2222\n User ada\n")
        data = {"ssh_port": 22, "ssh_user": "deploy"}
        found = resolved(SshTarget.from_data("box", data), config)
        assert (found["port"], found["user"]) == ("22", "deploy")

    def test_other_ssh_config_file_can_be_named(self, tmp_path: Path) -> None:
        config = tmp_path / "my config"
        config.write_text("Host box\n Port 2222\n")
        target = SshTarget.from_data("box", {"ssh_config_file": str(config)})
        done = run([*target.argv("true")[:1], "-G", *target.options(), target.destination])
        assert "\nport 2222\n" in done.stdout

    @pytest.mark.parametrize("name", ["a b", "a 'b'", 'a "b"', "a\\b", "a\\ b", "ü", "#a", "a=b"])
    def test_paths_with_special_characters_are_quoted(self, tmp_path: Path, name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        data = {key: str(folder / key) for key in ("ssh_known_hosts_file", "ssh_key")}
        (folder / "ssh_key").touch()
        found = resolved(SshTarget.from_data("box", data), tmp_path / "config")
        assert found["userknownhostsfile"] == data["ssh_known_hosts_file"]
        assert found["identityfile"] == data["ssh_key"]

    def test_percent_signs_in_paths_are_escaped(self) -> None:
        assert ssh_option("ControlPath", "/a%h b", "/%C") == 'ControlPath="/a%%h b/%C"'
        assert "IdentityFile=/a%%h" in SshTarget("box", "box", key=Path("/a%h")).options()
        assert ssh_option("UserKnownHostsFile", "/a%h") == "UserKnownHostsFile=/a%%h"

    def test_relative_paths_start_in_the_checkout(self) -> None:
        data = {"ssh_key": "keys/x", "ssh_known_hosts_file": "/etc/known"}
        target = SshTarget.from_data("box", data, Path("/checkout"))
        assert target.key == Path("/checkout/keys/x")
        assert target.known_hosts == Path("/etc/known")


class TestRsync:
    @pytest.fixture
    def asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A program in place of ssh that records its arguments."""
        program, words = tmp_path / "ssh", tmp_path / "words"
        program.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >{words}\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return words

    def words(self, asked: Path, target: SshTarget) -> list[str]:
        run(
            ["rsync", f"--rsh={target.rsync_shell()}", "/etc/hostname", target.remote("/x/")],
            check=False,
        )
        return asked.read_text().split("\0")[:-1]

    @pytest.mark.parametrize(
        ("hostname", "user", "heard"),
        [
            ("2001:db8::10", "deploy", ["-l", "deploy", "2001:db8::10"]),
            ("2001:db8::10", None, ["2001:db8::10"]),
            ("::1", "deploy", ["-l", "deploy", "::1"]),
            ("192.0.2.7", "deploy", ["-l", "deploy", "192.0.2.7"]),
            ("box.example", None, ["box.example"]),
        ],
    )
    def test_rsync_connects_to_the_same_host(
        self, asked: Path, hostname: str, user: str | None, heard: list[str]
    ) -> None:
        target = SshTarget("box", hostname, user)
        options = target.options()
        assert self.words(asked, target)[: len(options) + len(heard)] == [*options, *heard]
        assert target.destination == (f"{user}@{hostname}" if user else hostname)

    @given(st.lists(st.text("ab '\"\\%$-ü", min_size=1), min_size=2, max_size=2))
    @settings(
        max_examples=30,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    def test_rsync_uses_the_same_ssh_options(self, asked: Path, names: list[str]) -> None:
        key, known = (f"/{name}/x" for name in names)
        data = {"ssh_key": key, "ssh_known_hosts_file": known, "ssh_port": 2222}
        target = SshTarget.from_data("box", data)
        assert self.words(asked, target)[: len(target.options())] == target.options()


def test_by_hand_is_the_complete_ssh_command() -> None:
    data = {"ssh_hostname": "192.0.2.7", "ssh_port": 2222, "ssh_key": "/a b/key", "ssh_user": "ada"}
    line = SshTarget.from_data("box", data).by_hand()
    assert line == "ssh -p 2222 -i '/a b/key' -o IdentitiesOnly=yes ada@192.0.2.7"
    assert SshTarget.from_data("box", {}).by_hand() == "ssh box"


def test_shell_is_roots_and_has_a_terminal_if_there_is_one() -> None:
    target = SshTarget("b-1", "192.0.2.1", user="deploy", port=2222)
    assert target.shell_argv(is_terminal=True)[:4] == ["ssh", "-t", "-p", "2222"]
    piped = target.shell_argv(is_terminal=False)
    assert "-t" not in piped
    assert piped[-3:] == ["deploy@192.0.2.1", "--", "sudo -n -i"]
