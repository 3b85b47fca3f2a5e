"""The host's image store: uploads, the golden link, and which images are removed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path

import pytest

from polydev.hosttool import file_metadata, images
from polydev.hosttool.errors import HostError
from polydev.hosttool.golden_link import golden_digest, golden_of, make_golden
from polydev.hosttool.images import CHECKED, add, listing, prune
from polydev.hosttool.paths import Paths
from polydev.image_layout import BOOT_FILES, GOLDEN_LINK
from tests.diskwork import watched_disk
from tests.unit.hosttool_host import arrive

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def have(store: Path, *digests: str) -> None:
    for number, digest in enumerate(digests):
        arrive(store, digest)
        add(digest, store)
        os.utime(store / "images" / digest, (number, number))


def have_template(store: Path, digest: str) -> None:
    folder = store / "templates" / f"of-{digest}"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({"image_digest": digest}))


class TestAdd:
    def test_it_is_on_the_disk_before_it_has_its_name(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arrive(store, A)
        # The lock file is empty: its name alone counts.
        with watched_disk(monkeypatch, frozenset({"in-use.lock"})) as work:
            add(A, store)
        assert work.renames == 1
        assert work.faults() == []

    def test_a_whole_image_gets_its_place_at_once(self, store: Path) -> None:
        arrive(store, A)
        assert add(A, store) == {"digest": A, "added": True}
        assert (store / "images" / A / "rootfs.ext4").read_text() == f"rootfs.ext4 of {A}"
        assert (store / "images" / A / "in-use.lock").exists()
        assert list((store / "incoming").iterdir()) == []

    def test_a_second_time_changes_nothing(self, store: Path) -> None:
        have(store, A)
        assert add(A, store) == {"digest": A, "added": False}

    @pytest.mark.parametrize("name", BOOT_FILES)
    def test_a_damaged_file_is_named_and_what_arrived_stays(self, store: Path, name: str) -> None:
        folder = arrive(store, A)
        (folder / name).write_text("else")
        with pytest.raises(HostError, match=f"damaged: {name}$") as failure:
            add(A, store)
        assert failure.value.code == "image-damaged"
        assert folder.exists()
        assert not (store / "images").exists()

    @pytest.mark.parametrize("name", [*BOOT_FILES, "record.json"])
    def test_one_that_is_not_whole(self, store: Path, name: str) -> None:
        (arrive(store, A) / name).unlink()
        with pytest.raises(HostError, match="arrived incomplete"):
            add(A, store)
        assert not (store / "images").exists()

    def test_another_ones_record(self, store: Path) -> None:
        folder = arrive(store, A)
        folder.rename(store / "incoming" / B)
        with pytest.raises(HostError, match="its record"):
            add(B, store)

    @pytest.mark.parametrize("text", ["", "{", "{}", '{"files": {}}'])
    def test_a_record_that_says_nothing(self, store: Path, text: str) -> None:
        (arrive(store, A) / "record.json").write_text(text)
        with pytest.raises(HostError, match="arrived incomplete"):
            add(A, store)

    def test_once_it_is_mended_it_is_taken(self, store: Path) -> None:
        folder = arrive(store, A)
        (folder / "vmlinux").write_text("else")
        with pytest.raises(HostError):
            add(A, store)
        (folder / "vmlinux").write_text(f"vmlinux of {A}")
        assert add(A, store)["added"]

    def test_nothing_arrived(self, store: Path) -> None:
        with pytest.raises(HostError) as failure:
            add(A, store)
        assert failure.value.code == "image-damaged"


class TestGolden:
    def test_the_first_one(self, store: Path) -> None:
        have(store, A)
        assert make_golden(A, store) == {"golden": A, "was": None, "changed": True}
        assert os.readlink(store / GOLDEN_LINK) == "promotions/000001/rootfs.ext4"
        assert (store / GOLDEN_LINK).read_text() == f"rootfs.ext4 of {A}"
        assert golden_digest(store) == A

    def test_the_next_one_knows_the_one_before(self, store: Path) -> None:
        have(store, A, B)
        make_golden(A, store)
        assert make_golden(B, store)["was"] == A
        entry = json.loads((store / "promotions" / "000002.json").read_text())
        assert (entry["digest"], entry["previous"]) == (B, 1)

    def test_a_second_time_changes_nothing(self, store: Path) -> None:
        have(store, A)
        make_golden(A, store)
        assert make_golden(A, store) == {"golden": A, "was": A, "changed": False}
        assert len(list((store / "promotions").iterdir())) == 2

    def test_back_again_is_a_promotion_of_its_own(self, store: Path) -> None:
        have(store, A, B)
        for digest in (A, B, A):
            make_golden(digest, store)
        assert os.readlink(store / GOLDEN_LINK) == "promotions/000003/rootfs.ext4"

    def test_what_a_kill_left_is_stepped_over(self, store: Path) -> None:
        have(store, A, B)
        make_golden(A, store)
        (store / "promotions" / "000002.json").write_text('{"digest": "half"}')
        (store / "promotions" / ".000003.json.polydev-new").write_text("{")
        make_golden(B, store)
        assert golden_digest(store) == B

    def test_an_unknown_one_is_refused(self, store: Path) -> None:
        with pytest.raises(HostError, match="no image") as failure:
            make_golden(A, store)
        assert failure.value.code == "no-image"
        assert not (store / GOLDEN_LINK).is_symlink()

    @pytest.mark.parametrize("target", ["elsewhere", "promotions/x/rootfs.ext4", "../rootfs.ext4"])
    def test_a_link_that_is_not_ours_names_nothing(self, store: Path, target: str) -> None:
        store.mkdir()
        (store / GOLDEN_LINK).symlink_to(target)
        assert golden_digest(store) is None

    def test_a_backup_reads_the_same_from_it(self, store: Path) -> None:
        have(store, A)
        make_golden(A, store)
        kept = golden_of(store)
        assert kept
        assert kept.image == A


class TestListing:
    def test_nothing(self, store: Path) -> None:
        assert listing(store) == {"images": [], "golden": None}

    def test_whole_ones_oldest_first(self, store: Path) -> None:
        have(store, C, A, B)
        (store / "images" / ("d" * 64)).mkdir()
        arrive(store, "e" * 64)
        make_golden(A, store)
        assert listing(store) == {"images": [C, A, B], "golden": A}

    @pytest.mark.parametrize("name", BOOT_FILES)
    def test_one_with_a_byte_changed_is_not_whole(self, store: Path, name: str) -> None:
        have(store, A, B)
        with (store / "images" / A / name).open("r+b") as file:
            file.write(b"X")
        assert listing(store)["images"] == [B]
        assert listing(store)["images"] == [B]

    @pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {"cmdline": {}}}'])
    def test_one_without_a_record_is_not_whole(self, store: Path, text: str) -> None:
        have(store, A)
        (store / "images" / A / CHECKED).unlink()
        (store / "images" / A / "record.json").write_text(text)
        assert listing(store)["images"] == []

    def test_checksums_are_made_once_and_again_after_a_change(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        have(store, A, B)
        read: list[str] = []

        def file_sha256(path: Path) -> str:
            read.append(path.name)
            return file_metadata.file_sha256(path)

        monkeypatch.setattr(images, "file_sha256", file_sha256)
        assert listing(store)["images"] == [A, B]
        assert read == []
        (store / "images" / A / "vmlinux").chmod(0o600)
        # Of an earlier host tool, which did not note it.
        (store / "images" / B / CHECKED).unlink()
        assert listing(store)["images"] == [A, B]
        assert sorted(read) == sorted(2 * BOOT_FILES)
        assert listing(store)["images"] == [A, B]
        assert len(read) == 2 * len(BOOT_FILES)


class TestPrune:
    def test_what_nothing_needs_goes(
        self, store: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        have(store, A, B)
        make_golden(B, store)
        with watched_disk(monkeypatch) as work:
            assert prune(paths, store) == {"removed": [A]}
        assert not list(store.rglob(f"*{A}*"))
        assert (work.renames, work.faults()) == (1, [])
        assert listing(store)["images"] == [B]
        assert not list((store / "incoming").iterdir())

    def test_what_a_backup_names_stays(self, store: Path, paths: Paths) -> None:
        have(store, A, B)
        make_golden(B, store)
        manifest = paths.backups / "20250131_120000-abcd" / "backup.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"golden": {"target": "x", "image": A}}))
        assert prune(paths, store) == {"removed": []}

    def test_an_older_image_stays_while_the_golden_one_has_no_template(
        self, store: Path, paths: Paths
    ) -> None:
        have(store, A, B, C)
        make_golden(C, store)
        have_template(store, B)
        assert prune(paths, store) == {"removed": [A]}
        have_template(store, C)
        assert prune(paths, store) == {"removed": [B]}

    @pytest.mark.parametrize("text", ["", "[]", '{"of": "another release"}'])
    def test_a_template_that_says_nothing_keeps_no_image(
        self, store: Path, paths: Paths, text: str
    ) -> None:
        have(store, A, B)
        make_golden(B, store)
        (store / "templates" / "x").mkdir(parents=True)
        (store / "templates" / "x" / "record.json").write_text(text)
        assert prune(paths, store) == {"removed": [A]}

    def test_what_a_vm_runs_from_stays(self, store: Path, paths: Paths) -> None:
        have(store, A, B)
        make_golden(B, store)
        with (store / "images" / A / "in-use.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            assert prune(paths, store) == {"removed": []}
        assert prune(paths, store) == {"removed": [A]}

    def test_nobody_can_begin_to_hold_what_goes(
        self, store: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A VM that starts between the look and the removal would lose its image."""
        have(store, A, B)
        make_golden(B, store)
        real, refused = os.rename, []

        def rename(source: Path, target: Path) -> None:
            with (Path(source) / "in-use.lock").open() as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            refused.append(Path(source).name)
            real(source, target)

        monkeypatch.setattr(os, "rename", rename)
        prune(paths, store)
        assert refused == [A]

    def test_what_broke_off_on_its_way_goes(self, store: Path, paths: Paths) -> None:
        have(store, A)
        make_golden(A, store)
        arrive(store, B)
        prune(paths, store)
        assert not (store / "incoming" / B).exists()

    def test_an_empty_store(self, store: Path, paths: Paths) -> None:
        assert prune(paths, store) == {"removed": []}


def test_a_large_file_is_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"x" * 100)
    monkeypatch.setattr(file_metadata, "CHUNK_BYTES", 7)
    assert file_metadata.file_sha256(file) == hashlib.sha256(b"x" * 100).hexdigest()
