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
    def test_image_is_synced_before_its_rename(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arrive(store, A)
        # The lock file is empty, so it needs no sync.
        with watched_disk(monkeypatch, frozenset({"in-use.lock"})) as work:
            add(A, store)
        assert work.renames == 1
        assert work.faults() == []

    def test_complete_image_is_moved_into_place(self, store: Path) -> None:
        arrive(store, A)
        assert add(A, store) == {"digest": A, "added": True}
        assert (store / "images" / A / "rootfs.ext4").read_text() == f"rootfs.ext4 of {A}"
        assert (store / "images" / A / "in-use.lock").exists()
        assert list((store / "incoming").iterdir()) == []

    def test_adding_again_changes_nothing(self, store: Path) -> None:
        have(store, A)
        assert add(A, store) == {"digest": A, "added": False}

    @pytest.mark.parametrize("name", BOOT_FILES)
    def test_damaged_file_is_refused_and_the_upload_stays(self, store: Path, name: str) -> None:
        folder = arrive(store, A)
        (folder / name).write_text("else")
        with pytest.raises(HostError, match=f"damaged: {name}$") as failure:
            add(A, store)
        assert failure.value.code == "image-damaged"
        assert folder.exists()
        assert not (store / "images").exists()

    @pytest.mark.parametrize("name", [*BOOT_FILES, "record.json"])
    def test_incomplete_image_is_refused(self, store: Path, name: str) -> None:
        (arrive(store, A) / name).unlink()
        with pytest.raises(HostError, match="arrived incomplete"):
            add(A, store)
        assert not (store / "images").exists()

    def test_record_of_another_image_is_refused(self, store: Path) -> None:
        folder = arrive(store, A)
        folder.rename(store / "incoming" / B)
        with pytest.raises(HostError, match="its record"):
            add(B, store)

    @pytest.mark.parametrize("text", ["", "{", "{}", '{"files": {}}'])
    def test_malformed_record_is_refused(self, store: Path, text: str) -> None:
        (arrive(store, A) / "record.json").write_text(text)
        with pytest.raises(HostError, match="arrived incomplete"):
            add(A, store)

    def test_repaired_upload_is_accepted(self, store: Path) -> None:
        folder = arrive(store, A)
        (folder / "vmlinux").write_text("else")
        with pytest.raises(HostError):
            add(A, store)
        (folder / "vmlinux").write_text(f"vmlinux of {A}")
        assert add(A, store)["added"]

    def test_missing_upload_is_refused(self, store: Path) -> None:
        with pytest.raises(HostError) as failure:
            add(A, store)
        assert failure.value.code == "image-damaged"


class TestGolden:
    def test_first_promotion_makes_the_golden_link(self, store: Path) -> None:
        have(store, A)
        assert make_golden(A, store) == {"golden": A, "was": None, "changed": True}
        assert os.readlink(store / GOLDEN_LINK) == "promotions/000001/rootfs.ext4"
        assert (store / GOLDEN_LINK).read_text() == f"rootfs.ext4 of {A}"
        assert golden_digest(store) == A

    def test_next_promotion_records_the_previous_one(self, store: Path) -> None:
        have(store, A, B)
        make_golden(A, store)
        assert make_golden(B, store)["was"] == A
        entry = json.loads((store / "promotions" / "000002.json").read_text())
        assert (entry["digest"], entry["previous"]) == (B, 1)

    def test_promoting_again_changes_nothing(self, store: Path) -> None:
        have(store, A)
        make_golden(A, store)
        assert make_golden(A, store) == {"golden": A, "was": A, "changed": False}
        assert len(list((store / "promotions").iterdir())) == 2

    def test_promoting_again_mends_a_link_that_leads_elsewhere(self, store: Path) -> None:
        have(store, A, B)
        make_golden(A, store)
        link = store / "promotions" / "000001"
        link.unlink()
        link.symlink_to(f"../images/{B}")
        assert make_golden(A, store)["changed"]
        assert (store / GOLDEN_LINK).read_text() == f"rootfs.ext4 of {A}"

    def test_going_back_is_a_new_promotion(self, store: Path) -> None:
        have(store, A, B)
        for digest in (A, B, A):
            make_golden(digest, store)
        assert os.readlink(store / GOLDEN_LINK) == "promotions/000003/rootfs.ext4"

    def test_incomplete_promotion_is_skipped(self, store: Path) -> None:
        have(store, A, B)
        make_golden(A, store)
        (store / "promotions" / "000002.json").write_text('{"digest": "half"}')
        (store / "promotions" / ".000003.json.polydev-new").write_text("{")
        make_golden(B, store)
        assert golden_digest(store) == B

    def test_unknown_image_is_refused(self, store: Path) -> None:
        with pytest.raises(HostError, match="no image") as failure:
            make_golden(A, store)
        assert failure.value.code == "no-image"
        assert not (store / GOLDEN_LINK).is_symlink()

    @pytest.mark.parametrize("target", ["elsewhere", "promotions/x/rootfs.ext4", "../rootfs.ext4"])
    def test_foreign_golden_link_is_ignored(self, store: Path, target: str) -> None:
        store.mkdir()
        (store / GOLDEN_LINK).symlink_to(target)
        assert golden_digest(store) is None

    def test_backup_reads_the_same_golden_image(self, store: Path) -> None:
        have(store, A)
        make_golden(A, store)
        kept = golden_of(store)
        assert kept
        assert kept.image == A


class TestListing:
    def test_listing_of_an_empty_store(self, store: Path) -> None:
        assert listing(store) == {"images": [], "golden": None}

    def test_listing_has_complete_images_oldest_first(self, store: Path) -> None:
        have(store, C, A, B)
        (store / "images" / ("d" * 64)).mkdir()
        arrive(store, "e" * 64)
        make_golden(A, store)
        assert listing(store) == {"images": [C, A, B], "golden": A}

    @pytest.mark.parametrize("name", BOOT_FILES)
    def test_image_with_a_changed_byte_is_not_listed(self, store: Path, name: str) -> None:
        have(store, A, B)
        with (store / "images" / A / name).open("r+b") as file:
            file.write(b"X")
        assert listing(store)["images"] == [B]
        assert listing(store)["images"] == [B]

    @pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {"cmdline": {}}}'])
    def test_image_without_a_valid_record_is_not_listed(self, store: Path, text: str) -> None:
        have(store, A)
        (store / "images" / A / CHECKED).unlink()
        (store / "images" / A / "record.json").write_text(text)
        assert listing(store)["images"] == []

    def test_checksums_are_cached_until_a_file_changes(
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
        # As after an earlier host tool, which did not write checksums.
        (store / "images" / B / CHECKED).unlink()
        assert listing(store)["images"] == [A, B]
        assert sorted(read) == sorted(2 * BOOT_FILES)
        assert listing(store)["images"] == [A, B]
        assert len(read) == 2 * len(BOOT_FILES)


class TestPrune:
    def test_prune_removes_unused_images(
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

    def test_prune_keeps_images_named_by_a_backup(self, store: Path, paths: Paths) -> None:
        have(store, A, B)
        make_golden(B, store)
        manifest = paths.backups / "20250131_120000-abcd" / "backup.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"golden": {"target": "x", "image": A}}))
        assert prune(paths, store) == {"removed": []}

    def test_prune_keeps_the_older_image_until_golden_has_a_template(
        self, store: Path, paths: Paths
    ) -> None:
        have(store, A, B, C)
        make_golden(C, store)
        have_template(store, B)
        assert prune(paths, store) == {"removed": [A]}
        have_template(store, C)
        assert prune(paths, store) == {"removed": [B]}

    @pytest.mark.parametrize("text", ["", "[]", '{"of": "another release"}'])
    def test_malformed_template_record_keeps_no_image(
        self, store: Path, paths: Paths, text: str
    ) -> None:
        have(store, A, B)
        make_golden(B, store)
        (store / "templates" / "x").mkdir(parents=True)
        (store / "templates" / "x" / "record.json").write_text(text)
        assert prune(paths, store) == {"removed": [A]}

    def test_prune_keeps_images_in_use(self, store: Path, paths: Paths) -> None:
        have(store, A, B)
        make_golden(B, store)
        with (store / "images" / A / "in-use.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            assert prune(paths, store) == {"removed": []}
        assert prune(paths, store) == {"removed": [A]}

    def test_prune_locks_an_image_before_its_removal(
        self, store: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without the lock, a VM that starts before the removal would lose its image."""
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

    def test_prune_removes_incomplete_uploads(self, store: Path, paths: Paths) -> None:
        have(store, A)
        make_golden(A, store)
        arrive(store, B)
        prune(paths, store)
        assert not (store / "incoming" / B).exists()

    def test_prune_of_an_empty_store(self, store: Path, paths: Paths) -> None:
        assert prune(paths, store) == {"removed": []}


def test_large_file_is_hashed_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"x" * 100)
    monkeypatch.setattr(file_metadata, "CHUNK_BYTES", 7)
    assert file_metadata.file_sha256(file) == hashlib.sha256(b"x" * 100).hexdigest()
