"""A process that drives VMs which run already, until it is killed.

python -m tests.login_driver SETTINGS; these are JSON. Its clock is that of `tests.driving`.
"""

from __future__ import annotations

import asyncio
import json
import sys

from polydev.controller.database import create_engine
from polydev.controller.machines.agent_client import AgentClient
from polydev.controller.machines.hypervisor import SlotState
from polydev.controller.machines.vm_driver import Driver
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.sessions import Sessions
from polydev.controller.store.transactions import Database
from polydev.controller.store.vms import Vms
from tests.api import StillHypervisor
from tests.driving import QUICK, Clock, logins_of


class RunningVms(StillHypervisor):
    """Every slot runs the VM that its files name."""

    async def poll(self, slot: int) -> SlotState:
        current = self.root / str(slot) / "current"
        if not current.is_symlink():
            return SlotState(slot, "inactive", None)
        return SlotState(slot, "active", str(current.readlink()))


async def drive(settings: ControllerSettings) -> None:
    database, clock = Database(create_engine(settings.database_url)), Clock()
    sessions = Sessions(database, settings.session, clock)
    vms = Vms(database, settings.session, clock)
    agent = AgentClient(settings.vm_check.timeout_seconds)
    logins = logins_of(settings, database, sessions, agent, clock)
    hypervisor = RunningVms(settings.vm_root)
    await Driver(
        settings, vms, sessions, hypervisor, agent, logins, clock=clock, intervals=QUICK
    ).run()


if __name__ == "__main__":
    asyncio.run(drive(ControllerSettings(**json.loads(sys.argv[1]))))
