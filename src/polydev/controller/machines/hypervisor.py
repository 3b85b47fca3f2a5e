"""The one interface to whatever runs VMs. Every call may be repeated and then changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from polydev.vm.identity import Identity, Receipt
from polydev.vm.template_store import Template

Activity = Literal["inactive", "activating", "active", "deactivating", "failed"]


@dataclass(frozen=True)
class Launch:
    """What a VM is started with; the host's own settings say the rest (sizes, kernel, network).

    template    the template that it is resumed from, instead of a boot
    """

    vm_id: str
    slot: int
    image_digest: str
    session_id: str | None
    template: str | None = None


@dataclass(frozen=True)
class Origin:
    """The image of a VM that starts now, and the template that it is resumed from.

    template    None where it has to boot; `because` says why
    """

    image_digest: str
    template: str | None = None
    because: str = ""


@dataclass(frozen=True)
class TemplatesReport:
    """The templates of a host, and the making of the golden image's.

    golden      the golden image's digest
    wanted      the key of the template that it needs
    origin      of VMs that start now: of an older image until the golden one has its template
    records     of all that are there, oldest first
    step        what the maker does while it runs; None where it does not
    failure     why it could not make the wanted one, or not anew
    disk_bytes  the disk space that each takes, by key
    """

    golden: str
    wanted: str
    origin: Origin
    records: Sequence[Template]
    step: str | None = None
    failure: str | None = None
    disk_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SlotState:
    """What runs in a slot. `vm_id` is whom the slot's files name, running or not.

    detail  the service manager's words about an end: `exit-code 1`, `signal 9`, `oom-kill`
    """

    slot: int
    activity: Activity
    vm_id: str | None
    pid: int | None = None
    detail: str = ""

    @property
    def runs(self) -> bool:
        return self.activity in ("activating", "active", "deactivating")


class Hypervisor(Protocol):
    """Raises VmError where the service manager or the file system refuses."""

    async def start(self, launch: Launch) -> None:
        """Start a VM in its slot and return once its process runs, not when it has booted.

        One that is resumed from a template is loaded then and does not run on before `resume`.
        """

    async def templates(self) -> TemplatesReport:
        """Which templates there are, and what a VM that starts now is made of.

        Raises ImageError where there is no golden image.
        """

    async def resume(self, slot: int, vm_id: str) -> None:
        """Let a VM run on that is paused."""

    async def pause(self, slot: int, vm_id: str) -> None:
        """Stop a VM's processors; its clock stands."""

    async def set_clock(self, slot: int, vm_id: str) -> None:
        """Give a VM that runs on after a pause the time."""

    async def identify(self, slot: int, vm_id: str, identity: Identity) -> Receipt:
        """Give a VM that runs its identity. Its receipt is what holds in the guest then."""

    async def stop(self, slot: int) -> None:
        """End what runs in the slot, whoever it is, and return once nothing of it runs."""

    async def poll(self, slot: int) -> SlotState:
        """What is true of the slot now."""

    async def slots(self) -> dict[int, SlotState]:
        """Every slot in which something runs, failed, or has left files."""

    async def discard(self, slot: int, vm_id: str, *, keep_logs: bool) -> None:
        """Remove a stopped VM's disk and sockets, and its logs unless they are to be kept.

        Raises FilesLeft if something cannot be removed. No other VM can get at it then, so the slot
        is free.
        """

    async def folders(self) -> set[tuple[int, str]]:
        """Slot and id of every VM of which there are files."""

    def console(self, slot: int, vm_id: str) -> Path:
        """The file to which the VM's serial console goes; it may not exist (yet, or any more)."""

    def qemu_log(self, slot: int, vm_id: str) -> Path:
        """What the VM's own process said."""

    async def close(self) -> None:
        """Let go of connections; VMs run on."""
