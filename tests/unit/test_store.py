"""The image store on a real, temporary folder with images of a few bytes."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polydev.errors import ImageError
from polydev.image import image_folder
from polydev.image.store import ImageStore
from polydev.image.store_lock import store_lock
from polydev.image_layout import (
    BOOT_FILES,
    GOLDEN_LINK,
    IN_USE,
    INCOMING,
    INITRD,
    RECORD,
    ROOTFS,
    SBOM,
)
from polydev.image_record import FileEntry, ImageRecord
from tests.diskwork import watched_disk
from tests.images import FIRST, contents, record_of, verification

pytestmark = pytest.mark.unit


def add(
    store: ImageStore, seed: str, age_minutes: int = 0, verified: bool | None = None
) -> ImageRecord:
    with store.new_incoming() as incoming:
        for name, data in contents(seed).items():
            (incoming / name).write_bytes(data)
        (incoming / SBOM).write_text("{}")
        created_at = FIRST - timedelta(minutes=age_minutes)
        return store.add(incoming, record_of(seed, created_at, verified))


def promoted(store: ImageStore, *seeds: str) -> list[str]:
    """Add and promote verified images in this order; return their digests."""
    digests = [add(store, seed, verified=True).digest for seed in seeds]
    for digest in digests:
        store.promote(digest)
    return digests


def golden(store: ImageStore) -> str:
    """Return the digest that the golden link points to."""
    return store.golden_link.resolve(strict=True).parent.name


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def test_store_that_does_not_exist_is_empty(store: ImageStore) -> None:
    assert store.images() == []
    assert store.digests() == []
    assert not store.root.exists()


def test_added_image_is_complete_and_incoming_is_empty(store: ImageStore) -> None:
    record = add(store, "a")
    assert store.record(record.digest) == record
    assert (store.path(record.digest) / ROOTFS).read_bytes() == contents("a")[ROOTFS]
    assert list((store.root / INCOMING).iterdir()) == []


def test_new_image_is_held_until_the_build_ends(store: ImageStore) -> None:
    with store.new_incoming() as incoming:
        for name, data in contents("a").items():
            (incoming / name).write_bytes(data)
        digest = store.add(incoming, record_of("a")).digest
        assert store.in_use(digest)
        assert store.prune(keep=0).removed == []
    assert not store.in_use(digest)


def test_failed_build_removes_its_incoming_folder(store: ImageStore) -> None:
    def build() -> None:
        with store.new_incoming() as incoming:
            (incoming / "part").mkdir()
            (incoming / "part" / ROOTFS).write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build()
    assert list((store.root / INCOMING).iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "short", "misnamed"])
def test_incomplete_image_is_not_added(store: ImageStore, damage: str) -> None:
    record = record_of("a")
    with store.new_incoming() as incoming:
        for name, data in contents("a").items():
            (incoming / name).write_bytes(data)
        if damage == "missing":
            (incoming / INITRD).unlink()
        elif damage == "short":
            (incoming / INITRD).write_bytes(b"")
        else:
            record = record.model_copy(update={"digest": "0" * 64})
        with pytest.raises(ImageError, match="cannot add"):
            store.add(incoming, record)
    assert store.digests() == []


def test_adding_an_image_again_keeps_its_record(store: ImageStore) -> None:
    old = add(store, "a", age_minutes=5, verified=True)
    assert add(store, "a") == old
    assert store.record(old.digest).verification is not None
    assert list((store.root / INCOMING).iterdir()) == []


def test_adding_an_image_again_repairs_it_in_its_place(store: ImageStore) -> None:
    digest = add(store, "a", verified=True).digest
    store.promote(digest)
    (store.path(digest) / ROOTFS).write_bytes(b"flipped bits")
    (store.path(digest) / SBOM).unlink()
    add(store, "a")
    assert (store.path(digest) / ROOTFS).read_bytes() == contents("a")[ROOTFS]
    assert (store.path(digest) / SBOM).exists()
    assert store.promote(digest).changed is False


def test_image_is_in_use_while_it_is_repaired(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = add(store, "a").digest
    repair, seen = image_folder.repair, []

    def seen_repair(target: Path, incoming: Path, record: ImageRecord) -> None:
        seen.append(store.in_use(digest))
        repair(target, incoming, record)

    monkeypatch.setattr(image_folder, "repair", seen_repair)
    add(store, "a")
    assert seen == [True]


def test_damaged_file_is_not_replaced_by_another_damaged_one(store: ImageStore) -> None:
    record = add(store, "a")
    size_bytes = record.files[ROOTFS].size_bytes
    (store.path(record.digest) / ROOTFS).write_bytes(b"1" * size_bytes)
    with store.new_incoming() as incoming:
        for name, data in contents("a").items():
            (incoming / name).write_bytes(data)
        (incoming / ROOTFS).write_bytes(b"2" * size_bytes)
        store.add(incoming, record)
    assert (store.path(record.digest) / ROOTFS).read_bytes() == b"1" * size_bytes


def test_adding_an_image_again_replaces_an_unreadable_record(store: ImageStore) -> None:
    digest = add(store, "a", verified=True).digest
    (store.path(digest) / RECORD).write_text("{")
    assert add(store, "a").verification is None
    assert store.record(digest).verification is None


def test_add_is_repeated_if_a_prune_removes_the_old_image(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = add(store, "a", age_minutes=5).digest
    rename, pruned = Path.rename, []

    def rename_then_prune(old: Path, new: Path) -> None:
        try:
            rename(old, new)
        except OSError:
            monkeypatch.setattr(Path, "rename", rename)
            pruned.extend(store.prune(keep=0).removed)
            raise

    monkeypatch.setattr(Path, "rename", rename_then_prune)
    assert add(store, "a").created_at == FIRST
    assert pruned == [digest]


def test_written_record_is_read_back(store: ImageStore) -> None:
    record = add(store, "a")
    checked = record.model_copy(update={"verification": verification()})
    store.write_record(checked)
    assert store.record(record.digest) == checked
    assert store.images()[0].state == "verified"


def test_record_of_no_image_is_not_written(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="no image"):
        store.write_record(record_of("a"))


@pytest.mark.parametrize("text", ["", "{}", '{"digest": 1}'])
def test_unreadable_record_is_named(store: ImageStore, text: str) -> None:
    digest = add(store, "a").digest
    path = store.path(digest) / RECORD
    path.write_text(text)
    for act in (lambda: store.record(digest), store.images, lambda: store.promote(digest)):
        with pytest.raises(ImageError, match=str(path)):
            act()


def test_promotion_moves_the_link_and_is_recorded(store: ImageStore) -> None:
    a, b = promoted(store, "a", "b")
    assert golden(store) == b
    assert store.golden_link.readlink() == Path(f"promotions/000002/{ROOTFS}")
    entry = json.loads((store.root / "promotions/000002.json").read_text())
    assert (entry["number"], entry["digest"], entry["previous"]) == (2, b, 1)
    assert entry["by"]["pid"] == os.getpid()
    assert datetime.fromisoformat(entry["at"].replace("Z", "+00:00")).utcoffset() == timedelta(0)
    assert (store.root / "promotions/000001").readlink() == Path(f"../images/{a}")


def test_promotion_returns_the_previous_image(store: ImageStore) -> None:
    (a,) = promoted(store, "a")
    change = store.promote(add(store, "b", verified=True).digest)
    assert (change.number, change.was, change.changed) == (2, a, True)


def test_promoting_the_golden_image_changes_nothing(store: ImageStore) -> None:
    (a,) = promoted(store, "a")
    before = sorted(store.root.rglob("*"))
    change = store.promote(a)
    assert (change.changed, change.digest, change.was, change.number) == (False, a, a, 1)
    assert sorted(store.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("verified", "message"),
    [(None, "was never verified"), (False, "failed its verification: nginx.service failed")],
)
def test_only_a_verified_image_is_promoted(
    store: ImageStore, verified: bool | None, message: str
) -> None:
    digest = add(store, "b", verified=verified).digest
    with pytest.raises(ImageError, match=message) as caught:
        store.promote(digest)
    assert caught.value.hint == f"./inv golden.verify {digest[:12]}"
    assert not store.golden_link.is_symlink()


@pytest.mark.parametrize("name", BOOT_FILES)
def test_damaged_image_is_not_promoted(store: ImageStore, name: str) -> None:
    (a,) = promoted(store, "a")
    record = add(store, "b", verified=True)
    damaged = store.path(record.digest) / name
    damaged.write_bytes(b"other")
    with pytest.raises(ImageError) as caught:
        store.promote(record.digest)
    assert str(damaged) in caught.value.message
    assert record.files[name].sha256[:12] in caught.value.message
    assert hashlib.sha256(b"other").hexdigest()[:12] in caught.value.message
    assert "golden.build" in (caught.value.hint or "")
    assert golden(store) == a
    damaged.unlink()
    with pytest.raises(ImageError, match="No such file"):
        store.promote(record.digest)


def test_record_changed_along_with_its_file_is_not_promoted(store: ImageStore) -> None:
    record = add(store, "a", verified=True)
    data = b"other"
    (store.path(record.digest) / INITRD).write_bytes(data)
    entry = FileEntry(
        sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), allocated_bytes=0
    )
    store.write_record(record.model_copy(update={"files": {**record.files, INITRD: entry}}))
    with pytest.raises(ImageError, match="are those of"):
        store.promote(record.digest)


def test_record_of_another_image_is_refused(store: ImageStore) -> None:
    a, b = add(store, "a", verified=True), add(store, "b")
    (store.path(b.digest) / RECORD).write_text(a.model_dump_json())
    with pytest.raises(ImageError, match="record of another image"):
        store.promote(b.digest)


def test_unknown_image_is_not_promoted(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="no image"):
        store.promote("0" * 64)


@pytest.mark.parametrize("foreign", ["file", "link"])
def test_foreign_golden_file_is_not_replaced(store: ImageStore, foreign: str) -> None:
    digest = add(store, "a", verified=True).digest
    if foreign == "file":
        store.golden_link.write_bytes(b"precious")
    else:
        store.golden_link.symlink_to("/nowhere/rootfs.ext4")
    with pytest.raises(ImageError, match="promotion") as caught:
        store.promote(digest)
    assert "out of the way" in (caught.value.hint or "")
    assert os.path.lexists(store.golden_link)


@pytest.mark.parametrize(
    "change",
    [{"digest": "0" * 64}, {"number": 9}, {"previous": 2}, {"previous": 3}, {"by": "me"}],
    ids=str,
)
def test_damaged_promotion_is_named(store: ImageStore, change: dict[str, object]) -> None:
    promoted(store, "a", "b")
    path = store.root / "promotions/000002.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ImageError, match=str(path)):
        store.images()


def test_rollback_needs_a_previous_image(store: ImageStore) -> None:
    for _ in range(2):
        with pytest.raises(ImageError, match="no previous image"):
            store.rollback()
        promoted(store, "a")


def test_rollback_goes_back_step_by_step(store: ImageStore) -> None:
    a, b, c = promoted(store, "a", "b", "c")
    change = store.rollback()
    assert (change.digest, change.was, change.number, change.changed) == (b, c, 2, True)
    assert golden(store) == b
    assert store.resolve("previous") == a
    assert store.rollback().digest == a
    with pytest.raises(ImageError, match="no previous image"):
        store.rollback()


def test_promotion_after_a_rollback_gets_a_fresh_number(store: ImageStore) -> None:
    a, b = promoted(store, "a", "b")
    store.rollback()
    assert store.promote(b).number == 3
    assert store.rollback().digest == a


@pytest.mark.parametrize("damage", ["bytes", "gone"])
def test_rollback_to_a_damaged_image_is_refused(store: ImageStore, damage: str) -> None:
    a, b, c = promoted(store, "a", "b", "c")
    if damage == "bytes":
        (store.path(b) / ROOTFS).write_bytes(b"other")
    else:
        store.path(b).rename(store.root / "elsewhere")
    with pytest.raises(ImageError, match=b[:12]) as caught:
        store.rollback()
    assert f"golden.promote {a[:12]}" in (caught.value.hint or "")
    assert golden(store) == c


def test_promotions_not_reached_by_the_link_are_ignored(store: ImageStore) -> None:
    a, _ = promoted(store, "a", "b")
    killed = store.promotions.add(add(store, "c", verified=True).digest, previous=2)
    store.rollback()
    assert golden(store) == a
    states = {each.digest: each.state for each in store.images()}
    assert sorted(states.values()) == ["promoted", "verified", "verified"]
    (store.root / "promotions/.000009.json.0123.new").touch()
    (store.root / f".{GOLDEN_LINK}.new").touch()
    assert killed.number == 3
    store.prune()
    assert sorted(path.name for path in (store.root / "promotions").iterdir()) == [
        "000001",
        "000001.json",
    ]
    assert not (store.root / f".{GOLDEN_LINK}.new").exists()


def test_interrupted_promotion_does_not_block_the_next(
    store: ImageStore,
) -> None:
    _, b = promoted(store, "a", "b")
    (store.root / "promotions/000003.json").write_text("{}")
    (store.root / f".{GOLDEN_LINK}.new").symlink_to("anywhere")
    change = store.promote(add(store, "c", verified=True).digest)
    assert (change.number, change.was) == (4, b)


def test_images_are_listed_newest_first_with_their_state(store: ImageStore) -> None:
    promoted(store, "a", "b", "c")
    add(store, "built", age_minutes=-1)
    add(store, "failed", age_minutes=-2, verified=False)
    add(store, "verified", age_minutes=-3, verified=True)
    listed = store.images()
    assert [each.state for each in listed[:3]] == ["verified", "failed", "built"]
    assert sorted(each.state for each in listed[3:]) == ["promoted", "retired", "retired"]
    assert listed[1].cause == "nginx.service failed"
    assert [each.digest for each in listed if each.is_previous] == [record_of("b").digest]
    assert [each.digest for each in listed if each.state == "promoted"] == [golden(store)]
    assert json.dumps([each.model_dump(mode="json") for each in listed])


def test_list_shows_images_in_use(store: ImageStore) -> None:
    a, b = add(store, "a").digest, add(store, "b").digest
    with store.hold(a):
        assert {each.digest: each.in_use for each in store.images()} == {a: True, b: False}
    assert not any(each.in_use for each in store.images())


def test_image_is_found_by_alias_digest_or_prefix(store: ImageStore) -> None:
    a, b = promoted(store, "a", "b")
    latest = add(store, "c", age_minutes=-1).digest
    names = {
        "golden": b,
        "previous": a,
        "latest": latest,
        a: a,
        a[:6]: a,
        a[:12].upper(): a,
    }
    assert {name: store.resolve(name) for name in names} == names


@pytest.mark.parametrize(
    "name", ["golden", "previous", "latest", "0" * 64, "abcdef", "abc", "../x"]
)
def test_unknown_name_in_an_empty_store_is_refused(store: ImageStore, name: str) -> None:
    with pytest.raises(ImageError, match=r"^(there is )?no ") as caught:
        store.resolve(name)
    assert "golden." in (caught.value.hint or "")
    assert "golden.list" not in (caught.value.hint or ""), "it would show nothing"


def test_unknown_name_is_refused_with_known_images(store: ImageStore) -> None:
    a, b = promoted(store, "a", "b")
    for name in (a[:5], f"{a[:6]}zz"):
        with pytest.raises(ImageError) as caught:
            store.resolve(name)
        assert a[:12] in (caught.value.hint or "")
        assert b[:12] in (caught.value.hint or "")


def test_ambiguous_name_is_refused_with_the_candidates(store: ImageStore) -> None:
    for end in "01":
        store.path(f"abcdef{end}".ljust(64, end)).mkdir(parents=True)
    with pytest.raises(
        ImageError, match=r"is ambiguous: it begins the digests abcdef0+, abcdef1+$"
    ):
        store.resolve("abcdef")
    assert store.resolve("abcdef1") == f"abcdef{'1' * 58}"


def test_prune_keeps_needed_images(store: ImageStore) -> None:
    old, previous, current = promoted(store, "a", "b", "c")
    ages = {f"n{age}": add(store, f"n{age}", age_minutes=age).digest for age in range(1, 5)}
    with store.hold(ages["n4"]):
        would = store.prune(keep=2, dry_run=True)
        assert len(store.digests()) == 7
        done = store.prune(keep=2)
    assert would == done.model_copy(update={"dry_run": True})
    assert {each.digest: each.reason for each in done.kept} == {
        current: "golden",
        previous: "previous",
        ages["n4"]: "in use",
        old: "recent",
        ages["n1"]: "recent",
    }
    assert done.removed == [ages["n2"], ages["n3"]]
    assert done.freed_bytes > 0
    assert store.digests() == sorted(each.digest for each in done.kept)
    assert list((store.root / INCOMING).iterdir()) == []
    assert store.prune(keep=0).removed == [old, ages["n1"], ages["n4"]]
    assert store.digests() == sorted([previous, current])


def test_prune_does_not_count_hard_linked_files_as_freed(store: ImageStore) -> None:
    digest = add(store, "a").digest
    before = store.prune(keep=0, dry_run=True).freed_bytes
    os.link(store.path(digest) / ROOTFS, store.root / "cached")
    assert store.prune(keep=0).freed_bytes < before


def test_prune_removes_leftovers_of_dead_builds_and_prunes(store: ImageStore) -> None:
    for name in ("dead", ".trash-half"):
        (store.root / INCOMING / name).mkdir(parents=True)
        (store.root / INCOMING / name / ROOTFS).write_bytes(b"x" * 5000)
    with store.new_incoming() as alive:
        assert store.prune(dry_run=True).leftovers == [".trash-half", "dead"]
        pruned = store.prune()
        assert pruned.leftovers == [".trash-half", "dead"]
        assert pruned.freed_bytes >= 10000
        assert [path.name for path in (store.root / INCOMING).iterdir()] == [alive.name]


def test_pruned_image_keeps_its_promotion_history(store: ImageStore) -> None:
    a, b, c = promoted(store, "a", "b", "c")
    assert store.prune(keep=0).removed == [a]
    assert store.rollback().digest == b
    with pytest.raises(ImageError, match=f"no image {a[:12]}"):
        store.rollback()
    assert golden(store) == b
    assert store.resolve(c[:12]) == c


def test_image_is_in_use_until_every_hold_is_closed(store: ImageStore) -> None:
    digest = add(store, "a").digest
    first, second = store.hold(digest), store.hold(digest)
    first.close()
    first.close()
    assert store.in_use(digest)
    second.close()
    assert not store.in_use(digest)


def test_missing_image_cannot_be_held(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="no image"):
        store.hold("0" * 64)
    assert not store.in_use("0" * 64)


@pytest.mark.parametrize("again", [False, True], ids=["gone", "replaced"])
def test_hold_fails_if_a_prune_removed_the_image_first(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    digest = add(store, "a").digest
    flock = fcntl.flock

    def prune_then_flock(descriptor: io.FileIO, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        assert store.prune(keep=0).removed == [digest]
        if again:
            add(store, "a")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", prune_then_flock)
    with pytest.raises(ImageError, match="no image"):
        store.hold(digest)


def test_two_that_ask_at_once_do_not_take_each_other_for_users(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = add(store, "a").digest
    flock, asked, answers = fcntl.flock, threading.Event(), []

    def noted_flock(descriptor: int, operation: int) -> None:
        if not operation & fcntl.LOCK_NB:
            asked.set()
        try:
            flock(descriptor, operation)
        finally:
            asked.set()

    second = threading.Thread(target=lambda: answers.append(store.in_use(digest)))
    with image_folder.unless_held(store.path(digest)) as is_free:
        assert is_free
        monkeypatch.setattr(fcntl, "flock", noted_flock)
        second.start()
        assert asked.wait(60)
    second.join()
    assert answers == [False]


def test_every_image_has_a_lock_file(store: ImageStore) -> None:
    digest = add(store, "a").digest
    assert (store.path(digest) / IN_USE).stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize(
    "verb",
    [lambda store: store.promote("0" * 64), ImageStore.rollback, ImageStore.prune],
    ids=["promote", "rollback", "prune"],
)
def test_busy_store_error_names_the_holder(
    store: ImageStore, verb: Callable[[ImageStore], object]
) -> None:
    with store_lock(store.root, "promote 012345"):
        said = (store.root / ".lock").read_text().strip()
        with pytest.raises(ImageError, match="busy: promote 012345 by ") as caught:
            verb(store)
    assert f", pid {os.getpid()}, since 20" in said
    assert said in caught.value.message
    assert "run it again" in (caught.value.hint or "")
    assert (store.root / ".lock").read_text() == ""


def test_lock_text_of_a_killed_holder_does_not_lock(store: ImageStore) -> None:
    store.root.mkdir()
    (store.root / ".lock").write_text("promote by root@gone, pid 999999999, since ever\n")
    store.prune()


def test_busy_store_error_never_names_a_dead_holder(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.root.mkdir()
    path = store.root / ".lock"
    path.write_text("promote by root@gone, pid 999999999, since ever\n")
    signed = f"rollback by root@here, pid {os.getpid()}, since now"
    monkeypatch.setattr(time, "sleep", lambda _: path.write_text(signed))
    with path.open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(ImageError, match=f"busy: {signed}$"):
            store.prune()


def test_unwritable_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="cannot lock"):
        ImageStore(tmp_path / "file").prune()


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["a", "b", "c", "rollback", "prune"]), max_size=12))
def test_golden_follows_any_promotions_and_rollbacks(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ImageStore(Path(folder))
        digests = {seed: add(store, seed, verified=True).digest for seed in "abc"}
        stack: list[str] = []
        for step in steps:
            if step == "prune":
                store.prune(keep=3)
            elif step == "rollback" and len(stack) < 2:
                with pytest.raises(ImageError, match="no previous"):
                    store.rollback()
            elif step == "rollback":
                stack.pop()
                assert store.rollback().digest == stack[-1]
            else:
                assert store.promote(digests[step]).changed == (stack[-1:] != [digests[step]])
                stack += [digests[step]] if stack[-1:] != [digests[step]] else []
            assert [entry.digest for entry in store.promotions.history()] == stack[::-1]
            assert not stack or golden(store) == stack[-1]


def test_files_are_synced_before_their_names(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched_disk(monkeypatch, spared=frozenset(BOOT_FILES)) as adding:
        records = [add(store, seed, verified=True) for seed in ("a", "b")]
    assert (adding.faults(), adding.renames) == ([], 4)
    # Nobody else makes the boot files durable: a promotion must, before the link moves.
    with watched_disk(monkeypatch) as promoting:
        for record in records:
            store.promote(record.digest)
            files = [store.path(record.digest) / name for name in BOOT_FILES]
            assert promoting.has_synced(*files)
        store.rollback()
        store.write_record(records[0])
    assert (promoting.faults(), promoting.renames) == ([], 6)


def test_record_is_replaced_durably(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    record = add(store, "a")
    verified = record.model_copy(update={"verification": verification()})
    with watched_disk(monkeypatch) as work:
        store.write_record(verified)
    assert work.faults() == []
    assert work.renames == 1
    assert store.record(record.digest) == verified
    with pytest.raises(ImageError, match="no image bbbb"):
        store.write_record(verified.model_copy(update={"digest": "b" * 64}))
