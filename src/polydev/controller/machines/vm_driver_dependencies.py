"""The settings, stores, clients and clock that the driver and all that it runs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from polydev.controller.machines.agent_client import AgentClient
from polydev.controller.machines.hypervisor import Hypervisor
from polydev.controller.machines.login_monitor import LoginStores
from polydev.controller.machines.metrics import MachineMetrics
from polydev.controller.machines.vm_driver_timing import Intervals
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.sessions import Sessions
from polydev.controller.store.vms import Vms
from polydev.vm.cpu_wait_time import CpuSample


@dataclass(frozen=True)
class Dependencies:
    """The collaborators of the driver, its VMs, the pool and the cleanup.

    cpu_sample  reads the CPU times of a process, given the time now
    free_memory_mib     what programs on the host could have now
    """

    settings: ControllerSettings
    vms: Vms
    sessions: Sessions
    hypervisor: Hypervisor
    agent: AgentClient
    logins: LoginStores
    metrics: MachineMetrics
    clock: Callable[[], datetime]
    intervals: Intervals
    cpu_sample: Callable[[int, float], CpuSample]
    free_memory_mib: Callable[[], float]
