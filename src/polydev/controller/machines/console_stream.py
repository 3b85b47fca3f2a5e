"""Stream a VM's serial console: its last lines, then what is added."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from polydev.controller.machines.vm_logs import LAST_BYTES, MAX_BACKLOG_BYTES, added_since
from polydev.controller.poll_while_needed import SharedPoller
from polydev.controller.store.vms import Vms
from polydev.errors import VmError
from polydev.vm.untrusted_files import open_untrusted

BLOCK_BYTES = 64 * 1024
MOST_TAIL_BYTES = 1024 * 1024
MOST_LINES = 10_000
FOLLOW_SECONDS = 0.5


def tail(file: Path, lines: int) -> tuple[bytes, int]:
    """Return the last lines, with their control sequences, and the offset at which they end.

    They have at most MOST_TAIL_BYTES; a file that does not exist has none. Raises VmError for a
    file that must not be read.
    """
    try:
        with open_untrusted(file) as descriptor:
            end = start = os.fstat(descriptor).st_size
            found = b""
            while start and found.count(b"\n") <= lines and len(found) < MOST_TAIL_BYTES:
                size = min(BLOCK_BYTES, start)
                start -= size
                found = os.pread(descriptor, size, start) + found
    except FileNotFoundError:
        return b"", 0
    kept = found.splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(kept)[-MOST_TAIL_BYTES:], end


class Feed:
    """The console of one VM, as far as it was read for its followers: up to the offset `end`.

    data      the latest part of it; followers read what is before it from the file
    begun     how often the file has become shorter, so that it is read from its beginning
    changed   set by the next change
    """

    def __init__(self, file: Path, end: int) -> None:
        self.file = file
        self.end = end
        self.data = b""
        self.begun = 0
        self.failure: VmError | None = None
        self.is_over = False
        self.changed = asyncio.Event()
        self.followers = 0

    def wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def note(self, found: Added, *, is_over: bool) -> None:
        """Keep what was added; wake the followers if anything has changed."""
        has_changed = is_over != self.is_over
        self.is_over = is_over
        if isinstance(found, VmError):
            self.failure, has_changed = found, True
        elif found[0]:
            self.data, end = found
            if end - len(self.data) < self.end:
                self.begun += 1
            self.end, has_changed = end, True
        if has_changed:
            self.wake()

    async def part(self, offset: int) -> bytes:
        """Return some text from that offset on; nothing if the file no longer has it."""
        start = self.end - len(self.data)
        if offset >= start:
            return self.data[offset - start :][:BLOCK_BYTES]
        most = min(BLOCK_BYTES, self.end - offset)
        return await asyncio.to_thread(_read, self.file, offset, most)


class Consoles:
    """The consoles that are followed: one poller reads them and asks which VMs have ended."""

    def __init__(self, vms: Vms, every_seconds: float = FOLLOW_SECONDS) -> None:
        self._vms = vms
        self._feeds: dict[str, Feed] = {}
        self._poller = SharedPoller("consoles", self._poll, partial(asyncio.sleep, every_seconds))

    def wake(self) -> None:
        """Wake every follower, so that it checks whether to end."""
        for feed in self._feeds.values():
            feed.wake()

    async def follow(
        self, vm_id: str, file: Path, lines: int, is_to_end: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        """Yield the last lines, then what is added, until the VM has ended or `is_to_end` is true.

        Call `wake` when `is_to_end` changes. Raises VmError for a file that must not be read.
        """
        text, offset = await asyncio.to_thread(tail, file, lines)
        if text:
            yield text
        with self._feed(vm_id, file, offset) as feed:
            begun = feed.begun
            while not is_to_end():
                changed = feed.changed
                if feed.failure is not None:
                    raise feed.failure
                if feed.begun != begun:
                    begun, offset = feed.begun, 0
                if feed.end - offset > MAX_BACKLOG_BYTES:  # it reads too slowly
                    offset = feed.end - LAST_BYTES
                if offset < feed.end:
                    part = await feed.part(offset)
                    offset = offset + len(part) if part else feed.end
                    if part and not is_to_end():
                        yield part
                elif feed.is_over:
                    return
                else:
                    await changed.wait()

    @contextmanager
    def _feed(self, vm_id: str, file: Path, end: int) -> Iterator[Feed]:
        feed = self._feeds.setdefault(vm_id, Feed(file, end))
        feed.followers += 1
        try:
            with self._poller.in_use():
                yield feed
        finally:
            feed.followers -= 1
            if not feed.followers and self._feeds.get(vm_id) is feed:
                del self._feeds[vm_id]

    async def _poll(self) -> None:
        feeds = dict(self._feeds)
        over: set[str] = set()
        try:
            over = await self._vms.over_of(set(feeds))
        finally:
            places = [(feed.file, feed.end) for feed in feeds.values()]
            found = await asyncio.to_thread(_added, places)
            for (vm_id, feed), added in zip(feeds.items(), found, strict=True):
                feed.note(added, is_over=vm_id in over)
                if feed.is_over or feed.failure is not None:
                    self._feeds.pop(vm_id, None)  # a new follower starts a new feed


Added = tuple[bytes, int] | VmError


def _added(places: Iterable[tuple[Path, int]]) -> list[Added]:
    """Return the text that each file has after an offset, or why it must not be read."""
    return [_added_to(file, offset) for file, offset in places]


def _added_to(file: Path, offset: int) -> Added:
    try:
        return added_since(file, offset, MAX_BACKLOG_BYTES)
    except VmError as error:
        return error


def _read(file: Path, offset: int, most: int) -> bytes:
    try:
        with open_untrusted(file) as descriptor:
            return os.pread(descriptor, most, offset)
    except FileNotFoundError:
        return b""
