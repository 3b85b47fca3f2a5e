"""A release or an image that was changed by hand on the host is reported and replaced."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polydev.host_setup import controller, images
from polydev.host_setup.inventory_values import HostData
from polydev.hosttool import golden_link
from polydev.hosttool import images as store_of
from polydev.hosttool.file_metadata import file_sha256
from polydev.hosttool.paths import Paths
from polydev.hosttool.release_files import FILES, current_damage, release_damage
from polydev.hosttool.releases import create
from polydev.ssh import SshTarget
from tests.unit.fake_host import fake_host
from tests.unit.hosttool_host import arrive
from tests.unit.test_host_images import A, B, have

ID = "20250131_120000-abcd"
DIGEST = "d" * 64
TARGET = SshTarget("browsers", "browsers.example")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A controller's folder with a release in use."""
    root = tmp_path / "controller"

    def make(place: Path, *_: object) -> None:
        (place / "venv/bin").mkdir(parents=True)
        (place / "venv/bin/master-controller").write_text("program")
        (place / "venv/lib").symlink_to("bin")

    monkeypatch.setattr("polydev.hosttool.releases.make_venv", make)
    monkeypatch.setattr("polydev.hosttool.releases.run", lambda _: None)
    (root / "incoming" / ID).mkdir(parents=True)
    (root / "incoming" / ID / "requirements.txt").touch()
    create(ID, DIGEST, "abcd", Paths.below(tmp_path), root, sys.executable)
    (root / "current").symlink_to(f"releases/{ID}")
    return root


def damage(root: Path) -> list[str]:
    found = current_damage(root)
    assert found["release"] == ID
    assert isinstance(found["damage"], list)
    return found["damage"]


def test_unchanged_release_has_no_damage(root: Path) -> None:
    (root / "current/venv/bin/__pycache__").mkdir()
    (root / "current/venv/bin/__pycache__/x.cpython-311.pyc").touch()
    assert damage(root) == []


def test_host_without_a_release_has_no_damage(tmp_path: Path) -> None:
    assert current_damage(tmp_path) == {"release": None, "damage": []}


def append(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


def edit_in_secret(path: Path) -> None:
    """Change the content of a file, but neither its size nor its time."""
    before = path.stat()
    path.write_text(path.read_text()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_unchanged_files_are_not_hashed_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("polydev.hosttool.release_files.file_sha256", counted)
    assert damage(root) == []
    assert read == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda release: edit_in_secret(release / "venv/bin/master-controller"), "has sha256"),
        (lambda release: append(release / "venv/bin/master-controller"), "has sha256"),
        (lambda release: (release / "venv/bin/master-controller").unlink(), "has no venv/bin"),
        (lambda release: (release / "venv/bin/master-controller").chmod(0o777), "has mode 0777"),
        (lambda release: (release / "venv/lib").unlink(), "is not the link to "),
        (lambda release: (release / "venv/bin/x.pth").touch(), "does not belong to the release"),
        (lambda release: append(release / FILES), "has changed since the release was installed"),
        (lambda release: (release / FILES).unlink(), "is missing"),
    ],
)
def test_each_change_of_a_release_is_found(
    root: Path, change: Callable[[Path], object], said: str
) -> None:
    change(root / "releases" / ID)
    (line,) = damage(root)
    assert said in line


def test_release_without_a_known_sum_is_checked_by_its_list(root: Path) -> None:
    file = root / "current/release.json"
    known = json.loads(file.read_bytes())
    del known["files"]
    file.write_text(json.dumps(known))
    assert damage(root) == []
    append(root / "current/venv/bin/master-controller")
    assert len(damage(root)) == 1


def planned(found: list[str]) -> list[str]:
    answers = {
        "release.json": [json.dumps({"id": ID, "digest": DIGEST})],
        "sys.version_info": ["3.11"],
    }
    words: dict[str, Any] = {"digest": DIGEST, "release": "20250201_120000-abcd", "damage": found}
    with fake_host(answers) as host:
        site = HostData()
        controller.release(name="made", site=site, target=TARGET, commit="abcd", **words)
        controller.handover(name="handed over", config="", **words)
        return [command for commands in host.planned.values() for command in commands]


def test_damaged_release_is_replaced_under_a_new_id() -> None:
    made = planned(["x has sha256 1"])
    assert any("release create --id 20250201_120000-abcd" in command for command in made)
    assert made[-1].endswith("handover --release 20250201_120000-abcd")
    whole = planned([])
    assert not any("release create" in command for command in whole)
    assert whole[-1].endswith(f"handover --release {ID}")


class TestImages:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        store = tmp_path / "store"
        have(store, A, B)
        golden_link.make_golden(A, store)
        return store

    def test_wrong_promotion_link_is_replaced(self, store: Path) -> None:
        link = store / "promotions/000001"
        link.unlink()
        link.symlink_to(f"../images/{B}")
        assert store_of.listing(store) == {"images": [A, B], "golden": None}
        assert golden_link.make_golden(A, store)["changed"]
        assert store_of.listing(store)["golden"] == A
        assert not golden_link.make_golden(A, store)["changed"]

    def test_damaged_image_is_sent_again(self, store: Path) -> None:
        with (store / "images" / A / "rootfs.ext4").open("r+") as file:
            file.truncate(3)
        found = store_of.listing(store)
        assert found["images"] == [B]
        with fake_host({}) as host:
            words = {"site": HostData(), "target": TARGET, "digest": A, "there": found}
            commands = host.commands(images.golden_image, **words)
        assert any(command.endswith(f"image add --digest {A}") for command in commands)
        arrive(store, A)
        store_of.add(A, store)
        assert store_of.listing(store)["images"] == [B, A]


def test_release_without_a_list_needs_only_its_program(root: Path) -> None:
    """A backup of an earlier host tool has no checksum; the program must exist nevertheless."""
    place = root / "releases" / ID
    (place / "venv/bin/more").write_text("changed")
    assert release_damage(place, None) == []
    (place / FILES).unlink()
    assert release_damage(place, None) == []
    assert release_damage(place, "0" * 64) == [f"{place / FILES} is missing"]
    (place / "venv/bin/master-controller").unlink()
    assert release_damage(place, None) == [f"release {ID} has no venv/bin/master-controller"]
