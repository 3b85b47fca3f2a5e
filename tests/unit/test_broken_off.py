"""Work that is interrupted leaves nothing: no partial file, descriptor, lock or umask."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from polydev import durable_files
from polydev.errors import ImageError, VmError
from polydev.file_checksum import file_sha256
from polydev.host_setup import atomic_folder
from polydev.hosttool import verb_lock
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths
from polydev.image import build, image_folder, store_lock
from polydev.image.store import ImageStore
from polydev.image_layout import IN_USE
from polydev.progress import Steps
from polydev.vm import temp_folders, template, template_holder, template_store, untrusted_files
from polydev.vm.launch import held
from polydev.vm.template_client import FILES
from polydev.vm.template_store import Template, TemplateStore


class Broken(Exception):
    """The failure of the work itself."""


def descriptors() -> list[str]:
    """Return the open descriptors, without that of the folder that lists them.

    And without those of earlier tests' garbage, which may be collected at any time.
    """
    gc.collect()
    paths = Path("/proc/self/fd").iterdir()
    return sorted(os.readlink(path) for path in paths if path.is_symlink() and path.exists())


def below(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


def file_in(place: Path) -> Path:
    file = place / "file"
    file.write_text("as it was")
    return file


# Each kind of work, and the files that may remain.
WORK: dict[str, tuple[Callable[[Path], AbstractContextManager[Any]], set[str]]] = {
    "a bundle": (lambda place: atomic_folder.atomic_folder(place / "made"), set()),
    "an image that is made": (lambda place: ImageStore(place).new_incoming(), {"incoming"}),
    "a template that is made": (lambda place: TemplateStore(place).incoming(), set()),
    "the making of templates": (
        lambda place: TemplateStore(place).building(lambda: None),
        {".lock"},
    ),
    "a folder of a VM": (lambda _: temp_folders.temp_folder(), set()),
    "the lock of a store": (lambda place: store_lock.store_lock(place, "test"), {".lock"}),
    "the lock of a build": (lambda place: build._build_lock(place, Steps()), {"build.lock"}),
    "modes of a build": (lambda _: build._usual_modes(), set()),
    "a host": (
        lambda place: verb_lock.lock_host(Paths.below(place), "it"),
        {"opt", "opt/polydev-ai", "opt/polydev-ai/busy"},
    ),
    "a file of a VM": (lambda place: untrusted_files.open_untrusted(file_in(place)), {"file"}),
    "a folder with files of a VM": (
        lambda place: untrusted_files.open_untrusted_folder(place),
        set(),
    ),
    "an image in use": (lambda place: image_folder.hold(place), {IN_USE}),
    "an image that nobody uses": (lambda place: image_folder.unless_held(place), {IN_USE}),
}


@pytest.mark.parametrize("what", WORK)
@pytest.mark.parametrize("breaks", [True, False])
def test_interrupted_work_leaves_no_files_or_descriptors(
    what: str, breaks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, place = tmp_path / "temporary", tmp_path / "place"
    temporary.mkdir()
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    make, stays = WORK[what]
    before, umask = descriptors(), os.umask(0o077)
    try:
        if breaks:
            with pytest.raises(Broken), make(place):
                raise Broken
        else:
            with make(place):
                pass
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert descriptors() == before
    assert below(temporary) == set()
    assert below(place) == stays | ({"made"} if what == "a bundle" and not breaks else set())
    for name in stays:
        if (place / name).is_file():
            with (place / name).open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("what", ["the lock of a store", "the making of templates"])
def test_lock_is_held_during_the_work(what: str, tmp_path: Path) -> None:
    make, _ = WORK[what]
    refused = pytest.raises(BlockingIOError)
    with make(tmp_path), (tmp_path / ".lock").open("r+") as another, refused:
        fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_build_waits_for_another_build_and_reports_it(tmp_path: Path) -> None:
    notes: list[str] = []

    class Heard(Steps):
        def note(self, text: str) -> None:
            notes.append(text)
            fcntl.flock(other, fcntl.LOCK_UN)

    with (tmp_path / "build.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("process 7")
        other.flush()
        with build._build_lock(tmp_path, Heard()):
            assert (tmp_path / "build.lock").read_text() == f"process {os.getpid()}"
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert notes == ["waiting for another build, process 7"]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def store_record(place: Path) -> None:
    durable_files.write_text_durably(place / "file", "new")


@pytest.mark.parametrize(
    "write", [lambda place: durable_files.write_durably(place / "file", b"new"), store_record]
)
def test_failed_write_keeps_the_existing_file(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_in(tmp_path)
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path)
    assert below(tmp_path) == {"file"}
    assert (tmp_path / "file").read_text() == "as it was"
    assert descriptors() == before
    write(tmp_path)
    assert (tmp_path / "file").read_text() == "new"
    assert below(tmp_path) == {"file"}


def test_pruned_image_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is gone or replaced by the time the lock is taken."""
    image, gone = tmp_path / "image", tmp_path / "gone"
    flock = fcntl.flock

    def pruned(lock: Any, how: int) -> None:
        flock(lock, how)
        image.rename(gone)

    def made_anew(lock: Any, how: int) -> None:
        pruned(lock, how)
        image.mkdir()
        (image / IN_USE).touch()

    before = descriptors()
    for meanwhile in (pruned, made_anew):
        for hold, error in ((image_folder.hold, FileNotFoundError), (hold_for_vm, VmError)):
            image.mkdir()
            (image / IN_USE).touch()
            with monkeypatch.context() as patch:
                patch.setattr(fcntl, "flock", meanwhile)
                with pytest.raises(error):
                    hold(image)
            assert descriptors() == before
            for place in (image, gone):
                (place / IN_USE).unlink(missing_ok=True)
                if place.is_dir():
                    place.rmdir()


def hold_for_vm(image: Path) -> None:
    with held(image):
        pass


def test_image_holds_are_shared_and_end(tmp_path: Path) -> None:
    lock = tmp_path / IN_USE
    lock.touch()
    with held(tmp_path), held(tmp_path), image_folder.unless_held(tmp_path) as is_free:
        assert not is_free
    with image_folder.unless_held(tmp_path) as is_free:
        assert is_free


class TestTemplates:
    def made(self, place: Path, key: str = "k") -> TemplateStore:
        store = TemplateStore(place)
        with store.incoming() as incoming:
            for name in FILES:
                (incoming / name).write_text(name)
            sums = {name: file_sha256(incoming / name) for name in FILES}
            store.add(incoming, Template(key, "d", "q", "tcg", 1, 512, sums, 0.0, 1.0, 2.0))
        return store

    def test_damaged_template_is_refused(self, tmp_path: Path) -> None:
        store = self.made(tmp_path)
        (store.place("k") / FILES[-1]).write_text("another")
        before = descriptors()
        with pytest.raises(VmError, match=rf"template k is damaged: {FILES[-1]} has another"):
            template_holder.hold(store, "k")
        assert descriptors() == before
        with pytest.raises(VmError, match="there is no template l"):
            template_holder.hold(store, "l")

    def test_intact_template_is_held_in_memory(self, tmp_path: Path) -> None:
        store = self.made(tmp_path)
        kept = template_holder.hold(store, "k")
        assert [os.pread(each, 99, 0).decode() for each in kept.descriptors] == list(FILES)
        for each in kept.descriptors:
            os.close(each)

    def test_failed_seal_closes_its_descriptors(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file, before = file_in(tmp_path), descriptors()
        monkeypatch.setattr(template, "copy_data", full_disk)
        with pytest.raises(OSError, match="No space left"):
            template.sealed(file)
        assert descriptors() == before

    def test_removed_template_leaves_no_files(self, tmp_path: Path) -> None:
        store = self.made(tmp_path)
        store.remove("k")
        assert below(tmp_path) == set()
        store.remove("k")

    def test_new_template_replaces_the_old_one(self, tmp_path: Path) -> None:
        store = self.made(tmp_path)
        (store.place("k") / "left over").touch()
        self.made(tmp_path)
        assert below(tmp_path) == {"k", *(f"k/{name}" for name in (*FILES, "record.json"))}

    def test_files_of_a_killed_build_are_not_used(self, tmp_path: Path) -> None:
        left_over = tmp_path / template_store.INCOMING / "left over"
        left_over.parent.mkdir()
        left_over.touch()
        with TemplateStore(tmp_path).incoming() as incoming:
            assert below(incoming) == set()

    def test_record_of_another_template_is_not_used(self, tmp_path: Path) -> None:
        store = self.made(tmp_path)
        store.place("k").rename(store.place("l"))
        assert store.find("l") is None

    def test_template_is_on_the_disk_before_it_can_be_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        rename = Path.rename

        def renamed(path: Path, to: Path) -> Path:
            done.append(f"{path.name} -> {to.name}")
            return rename(path, to)

        monkeypatch.setattr(template_store, "sync", lambda path: done.append(path.name))
        monkeypatch.setattr(Path, "rename", renamed)
        self.made(tmp_path)
        incoming = template_store.INCOMING
        files = [*FILES, template_store.RECORD]
        expected = [*files, incoming, "k -> .k.gone", f"{incoming} -> k", tmp_path.name]
        assert done == expected

    def test_build_of_templates_waits_for_another_one(self, tmp_path: Path) -> None:
        with (tmp_path / ".lock").open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            building = TemplateStore(tmp_path).building(lambda: fcntl.flock(other, fcntl.LOCK_UN))
            with building, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


class TestTemplateHolder:
    KEY = "a" * 64

    def made(self, place: Path) -> TemplateStore:
        return TestTemplates().made(place, self.KEY)

    def test_memory_of_a_removed_template_is_released(self, tmp_path: Path) -> None:
        store = self.made(tmp_path)

        async def play() -> None:
            holder = template_holder.TemplateHolder(store)
            await holder._descriptors(self.KEY.encode())
            store.remove(self.KEY)
            with pytest.raises(VmError, match="there is no template"):
                await holder._descriptors(self.KEY.encode())

        before = descriptors()
        asyncio.run(play())
        assert descriptors() == before

    def test_template_is_read_once_for_concurrent_requests(self, tmp_path: Path) -> None:
        store = self.made(tmp_path)

        async def play() -> None:
            holder = template_holder.TemplateHolder(store)
            asked = (holder._descriptors(self.KEY.encode()) for _ in range(4))
            found = set(await asyncio.gather(*asked))
            assert len(found) == 1
            for each in found.pop():
                os.close(each)

        before = descriptors()
        asyncio.run(play())
        assert descriptors() == before

    def test_user_has_one_request_at_a_time(self, tmp_path: Path) -> None:
        async def play() -> None:
            holder = template_holder.TemplateHolder(TemplateStore(tmp_path))
            silent, first = socket.socketpair()
            second, client = socket.socketpair()
            with silent, client:
                waiting = asyncio.create_task(holder._serve(first))
                await asyncio.sleep(0)  # until it waits for the request
                await holder._serve(second)
                assert client.recv(1) == b""
                assert not waiting.done()
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

        asyncio.run(play())


def test_host_lock_timeout_names_the_holder(tmp_path: Path) -> None:
    paths = Paths.below(tmp_path)
    with verb_lock.lock_host(paths, "backup create"):
        before = descriptors()
        refused = pytest.raises(HostError, match=r"the host is busy: backup create, pid \d+$")
        with refused as told, verb_lock.lock_host(paths, "it", wait_seconds=0):
            pass
        assert told.value.code == "busy"
        assert descriptors() == before
        with verb_lock.lock_slot(paths, 2, "slot up 2", wait_seconds=0):
            refused = pytest.raises(HostError, match="slot 2 is busy: slot up 2")
            with refused, verb_lock.lock_slot(paths, 2, "it", wait_seconds=0):
                pass
            with verb_lock.lock_slot(paths, 3, "it", wait_seconds=0):
                pass


def test_store_lock_timeout_names_the_holder(tmp_path: Path) -> None:
    with store_lock.store_lock(tmp_path, "promote 1"):
        before = descriptors()
        said = rf"busy: promote 1 by .*, pid {os.getpid()}, since"
        with pytest.raises(ImageError, match=said), store_lock.store_lock(tmp_path, "prune"):
            pass
        assert descriptors() == before
    assert (tmp_path / ".lock").read_text() == ""
