"""The SSH daemon's settings against the declared ones; tests on labs have a real sshd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polydev.host_setup.host_files_and_units import SSHD_FILE
from polydev.host_setup.system_services import effective_sshd
from polydev.hosttool import sshd
from polydev.hosttool.errors import HostError

DECLARED = effective_sshd()
INCLUDE = "Include /etc/ssh/sshd_config.d/*.conf\n"
Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    (tmp_path / "etc/ssh/sshd_config.d").mkdir(parents=True)

    def write_file(name: str, text: str) -> None:
        (tmp_path / "etc/ssh" / name).write_text(text)

    write_file("sshd_config", INCLUDE)
    write_file(f"sshd_config.d/{Path(SSHD_FILE).name}", "Match all\nPasswordAuthentication no\n")
    return write_file


def found(root: Path) -> list[str]:
    return list(sshd.exceptions(DECLARED, root))


def test_settings_after_ours_are_ignored(write: Write, tmp_path: Path) -> None:
    text = "PasswordAuthentication yes\nMatch User bob\nPermitRootLogin yes\n"
    write("sshd_config.d/50-cloud-init.conf", text)
    write("sshd_config", f"{INCLUDE}{text}")
    assert found(tmp_path) == []


def test_match_block_before_the_include_is_found(write: Write, tmp_path: Path) -> None:
    write("sshd_config", f"# ours\nMatch User bob\n  PermitRootLogin yes\nMatch all\n{INCLUDE}")
    assert found(tmp_path) == ["/etc/ssh/sshd_config:3: permitrootlogin yes for Match User bob"]


@pytest.mark.parametrize(
    "line",
    [
        "ChallengeResponseAuthentication yes",
        "KbdInteractiveAuthentication=yes",
        '\tkbdinteractiveauthentication "yes"',
    ],
)
def test_match_block_in_an_earlier_file_is_found(write: Write, tmp_path: Path, line: str) -> None:
    write("sshd_config.d/00-a.conf", f"Match Address 10.0.0.0/8\n{line}\n")
    (said,) = found(tmp_path)
    assert said == (
        "/etc/ssh/sshd_config.d/00-a.conf:2: kbdinteractiveauthentication yes "
        "for Match Address 10.0.0.0/8"
    )


def test_match_block_ends_with_its_file(write: Write, tmp_path: Path) -> None:
    write("sshd_config.d/00-a.conf", "Match User bob\nX11Forwarding no\n")
    write("sshd_config.d/00-b.conf", "PasswordAuthentication yes\n")
    assert found(tmp_path) == []


def test_effective_settings_are_compared(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {**DECLARED, "passwordauthentication": "yes"}
    monkeypatch.setattr(sshd, "effective", lambda _: now)
    assert sshd.differences(DECLARED, tmp_path) == [
        "- sshd: passwordauthentication yes",
        "+ sshd: passwordauthentication no",
    ]
    assert sshd.differences({}, tmp_path) == [], "an earlier deploy declared none"


def test_unreadable_sshd_configuration_is_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unread(_: Path) -> dict[str, str]:
        raise HostError("sshd-unread", "line 3: Bad configuration option: foo")

    monkeypatch.setattr(sshd, "effective", unread)
    assert sshd.differences(DECLARED) == ["- sshd: line 3: Bad configuration option: foo"]


def test_sshd_that_cannot_run_is_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (said,) = sshd.differences(DECLARED, tmp_path)  # an empty tree has no daemon
    assert said.startswith("- sshd: chroot: ")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sshd.differences(DECLARED, tmp_path) == [
        "- sshd: cannot run chroot: No such file or directory"
    ]
