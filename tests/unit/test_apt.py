"""Parsing of apt's output, with a fake apt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from polydev.errors import BuildError, CommandError
from polydev.image import apt
from polydev.image.apt import Archive, Deb
from polydev.processes import Completed

SYSTEMD = (
    "'http://archive.invalid/systemd_252.39-1_amd64.deb' systemd_252.39-1_amd64.deb 3 SHA256:ab"
)
LINES = {
    SYSTEMD: Deb("systemd", "252.39-1", "systemd_252.39-1_amd64.deb", "ab", 3),
    "'http://archive.invalid/x' tigervnc_1%3a1.12.0+dfsg-8_amd64.deb 70000000 SHA256:cd": Deb(
        "tigervnc", "1:1.12.0+dfsg-8", "tigervnc_1%3a1.12.0+dfsg-8_amd64.deb", "cd", 70_000_000
    ),
    "'http://archive.invalid/x' libstdc++6_12.2.0-14+deb12u1_all.deb 1 SHA256:ef": Deb(
        "libstdc++6", "12.2.0-14+deb12u1", "libstdc++6_12.2.0-14+deb12u1_all.deb", "ef", 1
    ),
}


class CountingApt:
    """A fake apt that answers with one package and records its calls."""

    def __init__(self) -> None:
        self.asked: list[Sequence[object]] = []

    def __call__(self, argv: Sequence[object], **_: object) -> Completed:
        self.asked.append(argv)
        return Completed((), 0, f"Reading package lists...\n{SYSTEMD}\n", "", 0.0)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive(tmp_path / "apt", "bookworm", "amd64")
    archive.lists.mkdir(parents=True)
    (archive.lists / "bookworm_InRelease").write_text("today")
    return archive


@pytest.mark.parametrize("line", LINES)
def test_print_uris_line_is_parsed(line: str) -> None:
    assert Deb.from_print_uris(line) == LINES[line]


def test_archive_path_of_a_package(archive: Archive) -> None:
    deb = LINES[SYSTEMD]
    assert archive.path(deb) == archive.folder / "archives" / "systemd_252.39-1_amd64.deb"


def test_resolve_is_cached(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "run", counting := CountingApt())
    assert archive.resolve(["systemd"]) == [LINES[SYSTEMD]] == archive.resolve(["systemd"])
    assert len(counting.asked) == 1
    archive.resolve(["systemd", "udev"])
    assert len(counting.asked) == 2


def test_new_package_lists_invalidate_the_cache(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "run", counting := CountingApt())
    archive.resolve(["systemd"])
    (archive.lists / "bookworm_InRelease").write_text("tomorrow")
    archive.resolve(["systemd"])
    assert len(counting.asked) == 2


def test_locate_downloads_without_dependencies(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "run", counting := CountingApt())
    archive.resolve(["novnc"])
    archive.locate(["novnc"])
    assert [("install" in argv, "download" in argv) for argv in counting.asked] == [
        (True, False),
        (False, True),
    ]
    assert archive.locate([]) == []


def test_unknown_package_is_reported(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(argv: Sequence[str], **_: object) -> Completed:
        raise CommandError(["apt-get"], 100, "E: Unable to locate package chromuim")

    monkeypatch.setattr(apt, "run", unable)
    with pytest.raises(BuildError, match="chromuim") as caught:
        archive.resolve(["chromuim"])
    assert "apt-cache search" in str(caught.value.hint)


def test_unreachable_archive_is_reported(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(argv: Sequence[str], **_: object) -> Completed:
        raise CommandError(["apt-get"], 100, "E: Failed to fetch")

    monkeypatch.setattr(apt, "run", unreachable)
    monkeypatch.setattr(apt, "package_sources", lambda suite: "")
    with pytest.raises(BuildError, match="Failed to fetch") as caught:
        archive.refresh()
    assert "--offline" in str(caught.value.hint)
    assert not (archive.folder / "bookworm.refreshed").exists()


def test_package_lists_are_refreshed_at_most_once_an_hour(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "run", counting := CountingApt())
    monkeypatch.setattr(apt, "package_sources", lambda suite: "")
    archive.refresh()
    archive.refresh()
    assert len(counting.asked) == 1
    archive.refresh(force=True)
    assert len(counting.asked) == 2


def test_apt_settings_of_the_machine_are_ignored(archive: Archive) -> None:
    words = archive.options()
    assert words[::2] == ["-o"] * (len(words) // 2)
    settings = dict(word.split("=", 1) for word in words[1::2])
    assert settings["Dir::State::status"] == str(archive.folder / "status")
    assert settings["Dir::Etc::sourceparts"] == "/dev/null"
    assert settings["APT::Install-Recommends"] == "false"


@pytest.mark.parametrize(
    ("listed", "lines"),
    [
        (
            "http://a/debian|bookworm|main|Debian\nhttp://a/debian|bookworm-updates|main|$(ORIGIN)\n"
            "http://a/debian|bookworm|contrib|Debian\nhttp://a/debian|trixie|main|Debian\n"
            "http://b/other|bookworm|main|Other\n",
            ["http://a/debian bookworm main", "http://a/debian bookworm-updates main"],
        ),
        ("", ["http://c/debian bookworm main"]),
    ],
)
def test_package_sources_of_the_machine_or_of_mmdebstrap(
    monkeypatch: pytest.MonkeyPatch, listed: str, lines: list[str]
) -> None:
    said = {"apt-get": listed, "mmdebstrap": "I: chosen\ndeb http://c/debian bookworm main\n"}

    def answer(argv: Sequence[str], **_: object) -> Completed:
        return Completed((), 0, said[argv[0]], said[argv[0]], 0.0)

    monkeypatch.setattr(apt, "run", answer)
    expected = [f"deb [signed-by={apt.KEYRING}] {line}" for line in lines]
    assert apt.package_sources("bookworm").splitlines() == expected
    said |= {"apt-get": "", "mmdebstrap": "E: unknown suite\n"}
    with pytest.raises(BuildError, match="has no package source for Debian bookworm"):
        apt.package_sources("bookworm")
