"""Read the usage of one VM from its unit's cgroup, its folder and its slot's network port."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
from pydantic import Field

from polydev.controller.api_model import ApiModel
from polydev.controller.host.blocking_call import BlockingCall, NoAnswer
from polydev.controller.host.network_checks import slot_port
from polydev.vm.untrusted_files import open_untrusted_folder

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
# Mount point of cgroup version 2 beside version 1.
CGROUPS_OF_BOTH = CGROUPS / "unified"
CPU_SPAN_SECONDS = 0.25
BLOCK_BYTES = 512
MOST_FILES, MOST_DEPTH = 10_000, 10

# Kept, so that a disk that hangs takes one thread, not another one for each request.
_asked: dict[tuple[int, int | None, Path], BlockingCall[VmUsage]] = {}


class VmUsage(ApiModel):
    """The usage of a VM; null where it could not be measured, and `unavailable` says why.

    cpu_seconds     since its process was started
    cpu_percent     of all the host's cores together, just now
    memory_bytes    of its unit, including what the host caches for it; else of its process
    disk_bytes      disk space of its files, which is less than their size
    received_bytes  by the VM, since its slot was made; `sent_bytes` likewise
    """

    cpu_seconds: float | None = None
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    received_bytes: int | None = None
    sent_bytes: int | None = None
    unavailable: dict[str, str] = Field(default={}, exclude_if=lambda value: not value)


async def measure_vm(slot: int, pid: int | None, folder: Path) -> VmUsage:
    """Measure the VM of `slot`, whose process is `pid` if one runs. Raises nothing."""
    probe = _asked.setdefault(
        (slot, pid, folder), BlockingCall(partial(read_vm, slot, pid, folder))
    )
    try:
        return await probe()
    except NoAnswer as error:
        return VmUsage(unavailable={"all": str(error)})
    finally:
        if not probe.is_under_way:
            _asked.pop((slot, pid, folder), None)


def read_vm(slot: int, pid: int | None, folder: Path) -> VmUsage:
    """Measure the VM as `measure_vm` does; this blocks, so it runs in a thread."""
    found: dict[str, Any] = {}
    unavailable: dict[str, str] = {}

    def measure(name: str, read: Callable[[], dict[str, Any]]) -> None:
        try:
            found.update(read())
        except (OSError, psutil.Error, ValueError, KeyError, LookupError) as error:
            unavailable[name] = _reason(error)

    if pid is None:
        unavailable["cpu"] = unavailable["memory"] = "the VM has no process"
    else:
        cgroup = cgroup_folder(slot, pid)
        measure("cpu", partial(_cpu, pid, cgroup))
        measure("memory", partial(_memory, pid, cgroup))
    measure("disk", lambda: {"disk_bytes": allocated_bytes(folder)})
    measure("network", partial(_network, slot))
    return VmUsage(**found, unavailable=unavailable)


def _reason(error: Exception) -> str:
    if isinstance(error, psutil.NoSuchProcess):
        return "the VM's process has ended"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def unit_cgroup(text: str, slot: int) -> PurePosixPath | None:
    """Return the cgroup of the slot's unit from the text of /proc/PID/cgroup.

    None if the process is in another cgroup, whose counters would not be those of the VM alone.
    """
    lines = [line for line in text.splitlines() if line.startswith("0::")]
    path = PurePosixPath(lines[0].removeprefix("0::")) if lines else PurePosixPath("/")
    unit = f"microvm@{slot}.service"
    return next((each for each in (path, *path.parents) if each.name == unit), None)


def cgroup_folder(slot: int, pid: int) -> Path | None:
    try:
        path = unit_cgroup((PROC / str(pid) / "cgroup").read_text(), slot)
    except OSError:
        return None
    if path is None:
        return None
    places = (root / path.relative_to("/") for root in (CGROUPS, CGROUPS_OF_BOTH))
    return next((each for each in places if (each / "cpu.stat").is_file()), None)


def cpu_seconds_of(cpu_stat: str) -> float:
    """Return the CPU time from the text of a cgroup's cpu.stat. Raises KeyError."""
    return int(dict(line.split() for line in cpu_stat.splitlines())["usage_usec"]) / 1e6


def _cpu(pid: int, cgroup: Path | None) -> dict[str, Any]:
    started, before = time.monotonic(), _cpu_seconds(pid, cgroup)
    time.sleep(CPU_SPAN_SECONDS)
    after, spent = _cpu_seconds(pid, cgroup), time.monotonic() - started
    share = (after - before) / (spent * (psutil.cpu_count() or 1))
    return {
        "cpu_seconds": round(after, 3),
        "cpu_percent": round(min(max(100 * share, 0.0), 100.0), 1),
    }


def _cpu_seconds(pid: int, cgroup: Path | None) -> float:
    if cgroup is not None:
        return cpu_seconds_of((cgroup / "cpu.stat").read_text())
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _memory(pid: int, cgroup: Path | None) -> dict[str, Any]:
    # A host whose memory controller is not of cgroup version 2 counts no memory for the unit.
    if cgroup is not None and (cgroup / "memory.current").is_file():
        return {"memory_bytes": int((cgroup / "memory.current").read_text())}
    return {"memory_bytes": psutil.Process(pid).memory_info().rss}


def allocated_bytes(folder: Path) -> int:
    """Return the disk space of the files below `folder`; files that vanish meanwhile count nothing.

    Follows no link. Raises LookupError where there are far more files than in any VM's folder.
    """
    total = 0
    try:
        with open_untrusted_folder(folder) as inside:
            for count, size in enumerate(_sizes(inside)):
                if count == MOST_FILES:
                    raise LookupError(f"its folder has more than {MOST_FILES} files")
                total += size
    except FileNotFoundError:
        return 0
    return total


def _sizes(folder: int, depth: int = 0) -> Iterator[int]:
    """Yield the disk space of each file in a folder, given by its descriptor, and below."""
    if depth > MOST_DEPTH:
        raise LookupError(f"its folder is more than {MOST_DEPTH} levels deep")
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    with _inner_folder(entry.name, folder) as inner:
                        yield from _sizes(inner, depth + 1)
                else:
                    yield entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES


@contextmanager
def _inner_folder(name: str, outer: int) -> Iterator[int]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _network(slot: int) -> dict[str, Any]:
    """Read the counters of the slot's port: the VM sent what the port received."""
    counted = psutil.net_io_counters(pernic=True, nowrap=False).get(slot_port(slot))
    if counted is None:
        raise LookupError(f"network port {slot_port(slot)} is missing")
    return {"received_bytes": counted.bytes_sent, "sent_bytes": counted.bytes_recv}
