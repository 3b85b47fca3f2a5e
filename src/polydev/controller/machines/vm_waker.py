"""Resume a paused VM that a viewer, a login or a question of the API needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from polydev.controller.entities import Vm
from polydev.controller.event_notifier import EventNotifier
from polydev.controller.store.vms import Vms
from polydev.errors import VmError
from polydev.vm.cancel_on_timeout import limited

# A VM that runs on answers within a second; its host may be busy.
WAKE_SECONDS = 30.0


class VmWaker:
    """Notes that a VM is needed, which the driver takes for a reason to resume it.

    `wake_driver` makes the driver look at once; None on a host without slots.
    """

    def __init__(
        self, vms: Vms, event_notifier: EventNotifier, wake_driver: Callable[[], None] | None
    ) -> None:
        self._vms = vms
        self._event_notifier = event_notifier
        self._wake_driver = wake_driver

    async def awake(self, vm: Vm) -> Vm:
        """Resume the VM if it is paused, and return it; it may have ended meanwhile.

        Raises VmError if it does not resume in time.
        """
        if vm.paused_at is None:
            return vm
        await self._vms.used(vm.id)
        if self._wake_driver is not None:
            self._wake_driver()
        try:
            return await limited(WAKE_SECONDS, self._resumed(vm.id))
        except asyncio.TimeoutError:
            words = f"the VM did not resume within {WAKE_SECONDS:g} s"
            raise VmError(words, "try again") from None

    async def _resumed(self, vm_id: str) -> Vm:
        async with self._event_notifier.subscribed():
            while True:
                changed = self._event_notifier.next_change()
                vm = await self._vms.get(vm_id)
                if vm.paused_at is None or vm.state != "ready":
                    return vm
                await changed.wait()
