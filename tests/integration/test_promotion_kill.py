"""The image store under real processes: killed at any point, concurrent, holding an image.

A child runs one verb of the store. An audit hook in it counts what it asks of the file system
and, at a chosen one, kills or stops the process there, so that every moment can be reached
without waiting for it. Where a verb is killed at each of its moments, one process that has imported
everything forks a child for each: Pythons of their own would take five times the CPU time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

import polydev
from polydev import processes
from polydev.image.image_folder import require_promotable
from polydev.image.store import ImageStore
from polydev.image_layout import IMAGES, INCOMING, PROMOTIONS, RECORD, ROOTFS
from polydev.image_record import ImageRecord
from tests.images import FIRST, contents, record_of

pytestmark = pytest.mark.integration

SOURCE = str(Path(polydev.__file__).parent.parent)
KEEP = 1

IMPORTS = """
import fcntl, json, os, shutil, signal, sys
from pathlib import Path
from polydev.errors import Error
from polydev.image_record import ImageRecord
from polydev.image.store import ImageStore
"""
VERB = """
root, verb, argument, sent, moment = sys.argv[1:]
store = ImageStore(Path(root))
seen = 0
COUNTED = {
    "child.fsync", "fcntl.flock", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
    "os.symlink", "os.truncate",
}

def observe(event, arguments):
    global seen, moment
    if event == "open" and not isinstance(arguments[0], int):
        name = os.fsdecode(arguments[0])
        if moment == "hash" and name.endswith("/rootfs.ext4"):
            moment = "past"
            os.kill(os.getpid(), int(sent))
        if not name.startswith(root):
            return
    elif event not in COUNTED:
        return
    seen += 1
    if str(seen) == moment:
        os.kill(os.getpid(), int(sent))

def fsync(descriptor, original=os.fsync):
    sys.audit("child.fsync", descriptor)
    original(descriptor)

def add(folder):
    with store.new_incoming() as incoming:
        shutil.copytree(folder, incoming, dirs_exist_ok=True)
        record = ImageRecord.model_validate_json((incoming / "record.json").read_bytes())
        return store.add(incoming, record)

def hold(digest):
    with store.hold(digest):
        print("held", flush=True)
        sys.stdin.read()

os.fsync = fsync
verbs = {
    "promote": store.promote,
    "rollback": lambda _: store.rollback(),
    "prune": lambda keep: store.prune(int(keep)),
    "add": add,
    "hold": hold,
}
sys.addaudithook(observe)
try:
    verbs[verb](argument)
except Error as error:
    print(json.dumps(error.as_dict()))
    sys.exit(1)
"""
CHILD = IMPORTS + VERB
# A server of child processes: reads a command line from each line, answers with its status.
PARENT = f"""{IMPORTS}
verb = compile({VERB!r}, "verb", "exec")
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.argv[1:] = json.loads(line)
        exec(verb, {{**globals()}})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Argv = list[str | Path]


def child_words(
    store: ImageStore, verb: str, argument: str | Path = "", sent: int = 0, moment: str = ""
) -> list[str]:
    return [str(word) for word in (store.root, verb, argument, int(sent), moment)]


def child_argv(
    store: ImageStore, verb: str, argument: str | Path = "", sent: int = 0, moment: str = ""
) -> Argv:
    return [sys.executable, "-c", CHILD, *child_words(store, verb, argument, sent, moment)]


@contextmanager
def child(argv: Argv) -> Iterator[subprocess.Popen[bytes]]:
    """A process with pipes for its input and output, ended with the block."""
    process = processes.spawn(
        argv, env={"PYTHONPATH": SOURCE}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def stopped_promotion(store: ImageStore, digest: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that promotes, stopped as it begins to read the root filesystem."""
    with child(child_argv(store, "promote", digest, signal.SIGSTOP, "hash")) as process:
        result = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert result is not None
        assert result.si_code == os.CLD_STOPPED
        yield process


def image_folder(folder: Path, seed: str, age_minutes: int) -> ImageRecord:
    """A finished image outside of any store, its record beside the boot files."""
    folder.mkdir()
    for name, data in contents(seed).items():
        (folder / name).write_bytes(data)
    record = record_of(seed, FIRST - timedelta(minutes=age_minutes), verified=True)
    (folder / RECORD).write_text(record.model_dump_json())
    return record


def add(store: ImageStore, folder: Path, seed: str, age_minutes: int = 0) -> str:
    record = image_folder(folder, seed, age_minutes)
    with store.new_incoming() as incoming:
        shutil.copytree(folder, incoming, dirs_exist_ok=True)
        return store.add(incoming, record).digest


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Images `old`, `golden` (promoted in this order), `next` and `spare`, all verified."""
    store = ImageStore(tmp_path / "store")
    for age_minutes, seed in enumerate(("next", "spare", "golden", "old")):
        add(store, tmp_path / seed, seed, age_minutes)
    for seed in ("old", "golden"):
        store.promote(digest_of(tmp_path / seed))
    return store


def record_in(folder: Path) -> ImageRecord:
    return ImageRecord.model_validate_json((folder / RECORD).read_bytes())


def digest_of(folder: Path) -> str:
    return record_in(folder).digest


def copy_of(store: ImageStore, root: Path) -> ImageStore:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(store.root, root, symlinks=True)
    return ImageStore(root)


def states_after_each_kill(
    store: ImageStore, verb: str, argument: str | Path
) -> Iterator[ImageStore]:
    """Yield the store after a kill at each moment of the verb; the last run completes."""
    number = 0
    status = -signal.SIGKILL
    with child([sys.executable, "-c", PARENT]) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        while status == -signal.SIGKILL:
            number += 1
            left = copy_of(store, store.root.with_name("killed"))
            words = child_words(left, verb, argument, signal.SIGKILL, str(number))
            parent.stdin.write(f"{json.dumps(words)}\n".encode())
            parent.stdin.flush()
            status = int(parent.stdout.readline())
            assert status in (0, -signal.SIGKILL)
            yield left
    assert number > 10, "the child was hardly ever killed: the hook does not see what it does"


def golden(store: ImageStore) -> str:
    """Return the image that the link names, after a check that it is complete and verified."""
    folder = store.golden_link.resolve(strict=True).parent
    assert store.golden_link.resolve() == store.path(folder.name) / ROOTFS
    require_promotable(folder, store.record(folder.name))
    return folder.name


def assert_all_whole(store: ImageStore) -> None:
    assert [path.name for path in (store.root / IMAGES).iterdir()]
    for folder in (store.root / IMAGES).iterdir():
        require_promotable(folder, store.record(folder.name))


def test_promotion_killed_anywhere(store: ImageStore, tmp_path: Path) -> None:
    old, before, after, spare = (
        digest_of(tmp_path / seed) for seed in ("old", "golden", "next", "spare")
    )
    seen = []
    for left in states_after_each_kill(store, "promote", after):
        seen.append(golden(left))
        assert left.resolve("previous") == {before: old, after: before}[seen[-1]]
        assert_all_whole(left)
        assert left.promote(spare).was == seen[-1]
        assert golden(left) == spare
        assert left.rollback().digest == seen[-1]
        assert left.promote(after).changed == (seen[-1] != after)
        assert golden(left) == after
    assert seen == sorted(seen, key=[before, after].index), "the link moved once, and forward"
    assert set(seen) == {before, after}


def test_first_promotion_killed_anywhere(store: ImageStore, tmp_path: Path) -> None:
    after = digest_of(tmp_path / "next")
    store.golden_link.unlink()
    shutil.rmtree(store.root / PROMOTIONS)
    for left in states_after_each_kill(store, "promote", after):
        assert not left.golden_link.is_symlink() or golden(left) == after
        left.promote(after)
        assert golden(left) == after


def test_rollback_killed_anywhere(store: ImageStore, tmp_path: Path) -> None:
    before, after, spare = (digest_of(tmp_path / seed) for seed in ("golden", "old", "spare"))
    seen = []
    for left in states_after_each_kill(store, "rollback", ""):
        seen.append(golden(left))
        assert_all_whole(left)
        assert left.promote(spare).was == seen[-1]
        assert golden(left) == spare
    assert seen == sorted(seen, key=[before, after].index)
    assert set(seen) == {before, after}


def test_add_killed_anywhere(store: ImageStore, tmp_path: Path) -> None:
    fresh = image_folder(tmp_path / "fresh", "fresh", age_minutes=-1).digest
    before = digest_of(tmp_path / "golden")
    seen = []
    for left in states_after_each_kill(store, "add", tmp_path / "fresh"):
        assert golden(left) == before
        assert_all_whole(left)
        seen.append(fresh in left.digests())
        left.prune(keep=9)
        assert list((left.root / INCOMING).iterdir()) == []
        with left.new_incoming() as incoming:
            shutil.copytree(tmp_path / "fresh", incoming, dirs_exist_ok=True)
            assert left.add(incoming, record_in(tmp_path / "fresh")).digest == fresh
        left.promote(fresh)
        assert golden(left) == fresh
    assert seen == sorted(seen)
    assert set(seen) == {False, True}


def test_repair_by_add_killed_anywhere(store: ImageStore, tmp_path: Path) -> None:
    before = digest_of(tmp_path / "golden")
    (store.path(before) / ROOTFS).write_bytes(b"flipped bits")
    seen = []
    for left in states_after_each_kill(store, "add", tmp_path / "golden"):
        rootfs = left.golden_link.resolve(strict=True).read_bytes()
        seen.append(rootfs == (tmp_path / "golden" / ROOTFS).read_bytes())
        assert seen[-1] or rootfs == b"flipped bits"
    assert golden(left) == before
    assert seen == sorted(seen)


def test_prune_killed_anywhere(store: ImageStore, tmp_path: Path) -> None:
    old, before, kept, spare = (
        digest_of(tmp_path / seed) for seed in ("old", "golden", "next", "spare")
    )
    store.promotions.add(spare, previous=2)
    (store.root / INCOMING / "dead").mkdir()
    (store.root / INCOMING / "dead" / ROOTFS).write_bytes(b"half")
    seen = []
    for left in states_after_each_kill(store, "prune", str(KEEP)):
        assert golden(left) == before
        assert_all_whole(left)
        assert {old, before, kept} <= set(left.digests())
        seen.append(spare not in left.digests())
        left.prune(keep=KEEP)
        assert left.digests() == sorted([old, before, kept])
        assert list((left.root / INCOMING).iterdir()) == []
        assert left.promote(kept).number == 3
        assert golden(left) == kept
    assert seen == sorted(seen)
    assert set(seen) == {False, True}


def test_second_concurrent_promotion_is_refused_as_busy(store: ImageStore, tmp_path: Path) -> None:
    first, second = digest_of(tmp_path / "next"), digest_of(tmp_path / "spare")
    with stopped_promotion(store, first) as winner:
        loser = processes.run(
            child_argv(store, "promote", second), env={"PYTHONPATH": SOURCE}, check=False
        )
        refusal = json.loads(loser.stdout)
        assert (loser.status, refusal["error"]) == (1, "image")
        assert f"busy: promote {first[:12]} by " in refusal["message"]
        assert f"pid {winner.pid}, since" in refusal["message"]
        assert refusal["hint"]
        assert golden(store) == digest_of(tmp_path / "golden")
        os.kill(winner.pid, signal.SIGCONT)
        winner.communicate()
        assert winner.returncode == 0
    assert golden(store) == first
    assert store.promote(second).was == first


def test_lock_of_a_killed_promotion_is_free(store: ImageStore, tmp_path: Path) -> None:
    with stopped_promotion(store, digest_of(tmp_path / "next")) as process:
        process.kill()
        process.wait()
        store.promote(digest_of(tmp_path / "spare"))
    assert golden(store) == digest_of(tmp_path / "spare")


def test_list_and_hold_do_not_wait_for_promotion(store: ImageStore, tmp_path: Path) -> None:
    with stopped_promotion(store, digest_of(tmp_path / "next")):
        assert len(store.images()) == 4
        with store.hold(digest_of(tmp_path / "next")):
            assert store.in_use(digest_of(tmp_path / "next"))


def test_prune_keeps_image_held_by_another_process(store: ImageStore, tmp_path: Path) -> None:
    held = digest_of(tmp_path / "spare")
    with child(child_argv(store, "hold", held)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        pruned = store.prune(keep=0)
        assert {each.digest: each.reason for each in pruned.kept}[held] == "in use"
        assert pruned.removed == [digest_of(tmp_path / "next")]
        process.kill()
        process.wait()
        assert store.prune(keep=0).removed == [held]


def test_prune_keeps_image_with_inherited_hold(store: ImageStore, tmp_path: Path) -> None:
    held = digest_of(tmp_path / "spare")
    with store.hold(held) as hold:
        vm = processes.spawn(["cat"], stdin=subprocess.PIPE, pass_fds=[hold.fileno()])
    try:
        assert store.prune(keep=0).removed == [digest_of(tmp_path / "next")]
        assert store.in_use(held)
    finally:
        vm.communicate()
    assert store.prune(keep=0).removed == [held]


def test_prune_removes_folders_of_dead_builds_only(store: ImageStore, tmp_path: Path) -> None:
    fresh = image_folder(tmp_path / "fresh", "fresh", age_minutes=-1)
    with child(child_argv(store, "add", tmp_path / "fresh", signal.SIGSTOP, "hash")) as process:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        (building,) = (store.root / INCOMING).iterdir()
        assert store.prune(keep=9).leftovers == []
        assert building.exists()
        process.kill()
        process.wait()
        assert store.prune(keep=9).leftovers == [building.name]
    assert fresh.digest not in store.digests()
