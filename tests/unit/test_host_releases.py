"""Releases of the controller on the host: which are kept, and the listing of one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from polydev.hosttool import releases
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import file_sha256
from polydev.hosttool.paths import Paths
from polydev.hosttool.release_files import FILES, files_of, release_damage, write_file_list
from polydev.hosttool.releases import create, prune

IDS = [f"2025013{day}_120000-abcd" for day in range(6)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "controller"


def install(root: Path, *names: str, current: str | None = None) -> None:
    for name in names:
        (root / "releases" / name).mkdir(parents=True)
    if current:
        (root / "current").symlink_to(f"releases/{current}")


def back_up(paths: Paths, name: str, text: str) -> None:
    folder = paths.backups / name
    folder.mkdir(parents=True)
    (folder / "backup.json").write_text(text)


def there(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "releases").iterdir())


class TestPrune:
    def test_prune_keeps_the_newest_releases(self, root: Path, paths: Paths) -> None:
        install(root, *IDS, current=IDS[5])
        assert prune(2, paths, root) == {"removed": IDS[:4], "wheels": []}
        assert there(root) == IDS[4:]

    def test_prune_keeps_the_current_release(self, root: Path, paths: Paths) -> None:
        install(root, *IDS, current=IDS[0])
        prune(1, paths, root)
        assert there(root) == [IDS[0], IDS[5]]

    def test_prune_keeps_releases_named_by_a_backup(self, root: Path, paths: Paths) -> None:
        install(root, *IDS, current=IDS[5])
        back_up(paths, IDS[3], json.dumps({"release": IDS[1]}))
        back_up(paths, IDS[4], json.dumps({"release": None}))
        prune(1, paths, root)
        assert there(root) == [IDS[1], IDS[5]]

    def test_prune_with_keep_0_keeps_the_current_release(self, root: Path, paths: Paths) -> None:
        install(root, *IDS, current=IDS[2])
        prune(0, paths, root)
        assert there(root) == [IDS[2]]

    def test_prune_without_surplus_removes_nothing(self, root: Path, paths: Paths) -> None:
        install(root, *IDS[:2], current=IDS[1])
        assert prune(5, paths, root) == {"removed": [], "wheels": []}

    def test_prune_removes_unused_wheels(self, root: Path, paths: Paths) -> None:
        install(root, *IDS[:1], current=IDS[0])
        pins = "typing-extensions==4.1 --hash=sha256:0\nours==1.0+ab --hash=sha256:0\n"
        (root / "releases" / IDS[0] / "requirements.txt").write_text(pins)
        wheels = root / "wheels"
        wheels.mkdir()
        stay = ["ours-1.0+ab-py3-none-any.whl", "typing_extensions-4.1-py3-none-any.whl"]
        gone = ["ours-1.0+cd-py3-none-any.whl", "typing_extensions-4.0-py3-none-any.whl"]
        for name in (*stay, *gone):
            (wheels / name).touch()
        assert prune(5, paths, root) == {"removed": [], "wheels": gone}
        assert sorted(path.name for path in wheels.iterdir()) == stay

    def test_prune_without_releases(self, root: Path, paths: Paths) -> None:
        assert prune(5, paths, root) == {"removed": [], "wheels": []}


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    venv = tmp_path / "release" / "venv"
    (venv / "bin").mkdir(parents=True)
    program = venv / "bin" / "master-controller"
    program.write_text("#!x\n")
    program.chmod(0o755)
    (venv / "bin" / "python3").symlink_to("/usr/bin/python3")
    (venv / "lib").mkdir()
    (venv / "lib" / "a.py").write_text("a = 1\n")
    (venv / "lib" / "a.py").chmod(0o644)
    return venv


class TestListing:
    def test_files_and_links_in_order_without_folders(self, venv: Path) -> None:
        found = list(files_of(venv))
        times = [each.pop("ctimeNs", None) for each in found]
        assert times == [
            (venv / "bin/master-controller").stat().st_ctime_ns,
            None,
            (venv / "lib/a.py").stat().st_ctime_ns,
        ]
        assert found == [
            {
                "path": "venv/bin/master-controller",
                "mode": "755",
                "sha256": hashlib.sha256(b"#!x\n").hexdigest(),
            },
            {"path": "venv/bin/python3", "target": "/usr/bin/python3"},
            {
                "path": "venv/lib/a.py",
                "mode": "644",
                "sha256": hashlib.sha256(b"a = 1\n").hexdigest(),
            },
        ]

    def test_release_damage_checks_the_file_list(self, venv: Path) -> None:
        write_file_list(venv.parent)
        listed = file_sha256(venv.parent / FILES)
        assert release_damage(venv.parent, listed) == []
        (venv / "lib" / "a.py").write_text("a = 2\n")
        assert len(release_damage(venv.parent, listed)) == 1


class TestCreate:
    def test_release_counts_only_once_all_of_it_is_on_the_disk(
        self, root: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arrived, place = root / "incoming" / IDS[0], root / "releases" / IDS[0]
        arrived.mkdir(parents=True)
        (arrived / "requirements.txt").write_text("")
        found = []

        def noted_run(argv: list[str]) -> None:
            found.append((argv, sorted(path.name for path in place.iterdir())))

        monkeypatch.setattr(releases, "make_venv", lambda place, *_: (place / "venv").mkdir())
        monkeypatch.setattr(releases, "run", noted_run)
        create(IDS[0], "a" * 64, "abcd", paths, root)
        complete = [FILES, "requirements.txt", "venv"]
        assert found == [(["sync", "--file-system", str(place)], complete)]
        assert (place / "release.json").exists()
        assert not arrived.exists()

    def test_release_id_with_a_path_is_refused(self, root: Path, paths: Paths) -> None:
        with pytest.raises(HostError) as failure:
            create("../../etc", "a" * 64, "abcd", paths, root)
        assert failure.value.code == "bad-id"
