"""The host's memory, which VMs share with everything else."""

from __future__ import annotations

import psutil

MIB = 1 << 20


def free_memory_mib() -> float:
    """Memory that programs could have now without swapping."""
    return psutil.virtual_memory().available / MIB
