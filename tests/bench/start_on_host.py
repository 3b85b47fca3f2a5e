"""Measure the time until a session's screen answers, and a bare resume of the same template.

`./inv bench.start` sends it to a host, whose controller's Python runs it as root:

    start_on_host ADDRESS STARTS COLD    seconds of each kind, as JSON

Sessions' starts and bare resumes are measured in turn, in one run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.bench.bare_on_host import CONFIG, bare_resumes
from tests.bench.sessions_on_host import Host, operated, say

KINDS = ("bare", "pool", "clone", "cold")


@contextmanager
def without_templates() -> Iterator[None]:
    """Make all templates unusable for the block, so that VMs boot."""
    from polydev.controller.machines.template_selection import templates_of
    from polydev.controller.settings import load_settings

    templates = templates_of(load_settings(CONFIG))
    with ExitStack() as stack:
        for each in templates.all():
            place = templates.place(each.key)
            aside = place.rename(place.with_name(f".{each.key}.bench"))
            stack.callback(aside.rename, place)
        yield


class Measured:
    """Seconds of each kind until the greeting and until the first frame, noted as they come."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.first_frames: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def note(self, kind: str, seconds: float, first_frame: float | None) -> None:
        self.seconds[kind].append(round(seconds, 4))
        words = f"{kind} {seconds:.3f} s"
        if first_frame is not None:
            self.first_frames[kind].append(round(first_frame, 4))
            words += f", first frame {first_frame:.3f} s"
        say(words)

    def start_until(self, kind: str, *, is_all_noted: bool = True) -> None:
        """Start sessions until one is of this kind: those that the pool has come first."""
        while started := self._host.start():
            if is_all_noted or started.kind == kind:
                self.note(started.kind, started.seconds, started.first_frame_seconds)
            if started.kind == kind:
                break
        self._host.end_all()


def measure(url: str, starts: int, colds: int) -> None:
    with operated(url) as host:
        measured = Measured(host)
        with bare_resumes() as bare:
            bare.timed()  # the first one after a template was made has it read from the disk
            for _ in range(starts):
                alone = bare.timed()
                measured.note("bare", alone.seconds, alone.first_frame_seconds)
                host.settle()
                measured.start_until("clone")
            while host.pool_size() and len(measured.seconds["pool"]) < starts:
                host.settle()
                measured.start_until("pool")
        if colds:
            with without_templates():
                for _ in range(colds):
                    measured.start_until("cold", is_all_noted=False)
    print(json.dumps({"seconds": measured.seconds, "first_frame_seconds": measured.first_frames}))


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
