"""Settings of VMs: their size, the pool of VMs that wait for sessions, boots, health checks."""

from __future__ import annotations

from pydantic import Field, field_validator

from polydev.controller.settings.sessions import WATCHED_SECONDS
from polydev.controller.settings.shared_types import MOST_SECONDS, Seconds, Section

MOST_VM_MIB = 1024 * 1024
LEAST_PAUSE_SECONDS = 3 * WATCHED_SECONDS


class VmSettings(Section):
    """The size of every VM of this host, and when it is paused.

    translation_cache_mib   the cache of translated code of QEMU's TCG
    pause_after_seconds     how long after its last viewer a VM is paused, unless its tool logs in;
                            0: never
    least_free_memory_mib   memory that the host must have left for another VM to start
    """

    cpus: int = Field(default=2, ge=1, le=64)
    memory_mib: int = Field(default=2048, ge=128, le=MOST_VM_MIB)
    translation_cache_mib: int = Field(default=1024, ge=32, le=MOST_VM_MIB)
    pause_after_seconds: float = Field(default=60, ge=0, le=MOST_SECONDS)
    least_free_memory_mib: int = Field(default=512, ge=0, le=MOST_VM_MIB)

    @field_validator("pause_after_seconds")
    @classmethod
    def _check_pause(cls, seconds: float) -> float:
        if 0 < seconds < LEAST_PAUSE_SECONDS:
            raise ValueError(
                f"must be 0 (never) or at least {LEAST_PAUSE_SECONDS:g}: viewers are recorded "
                f"every {WATCHED_SECONDS:g} s"
            )
        return seconds


class PoolSettings(Section):
    """VMs that are resumed, run for a moment and paused before a session asks for one.

    size            how many VMs wait; a host that resumes no VMs from templates has none
    spare_slots     slots that the pool leaves free
    least_free_memory_mib   memory that the host must have left; with less, the pool's VMs end
    """

    size: int = Field(default=2, ge=0, le=253)
    spare_slots: int = Field(default=1, ge=0, le=253)
    least_free_memory_mib: int = Field(default=1024, ge=0, le=MOST_VM_MIB)


class BootDeadlines(Section):
    """By when each stage of a boot must be reached, in seconds since the stage before it.

    The time that a VM waits for a CPU of a busy host does not count.
    """

    kernel: Seconds = 60
    init: Seconds = 120
    network: Seconds = 120
    services: Seconds = 180
    ready: Seconds = 300


class VmChecks(Section):
    """Health checks of a VM that is up; after so many failures in a row it has failed."""

    every_seconds: Seconds = 10
    timeout_seconds: Seconds = 10
    failures: int = Field(default=3, ge=1)
