"""The interface to what runs VMs. Every call may be repeated: the second one changes nothing."""

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
    """The values with which a VM is started. The host's settings have the rest, such as sizes.

    template    the template from which it is resumed; None: it boots
    """

    vm_id: str
    slot: int
    image_digest: str
    session_id: str | None
    template: str | None = None


@dataclass(frozen=True)
class Origin:
    """The image of a VM that starts now, and the template from which it is resumed.

    template    None if the VM must boot; `because` says why
    """

    image_digest: str
    template: str | None = None
    because: str = ""


@dataclass(frozen=True)
class TemplatesReport:
    """The templates of a host, and the build of the golden image's template.

    golden      the golden image's digest
    wanted      the key of the template that it needs
    origin      of VMs that start now: of an older image until the golden one has its template
    records     of all templates, oldest first
    step        what the maker does now; None if it does not run
    failure     why it could not make the wanted template, or make it anew
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
    """The state of a slot. `vm_id` is the VM that the slot's files name, running or not.

    detail  how the unit ended, in systemd's words: `exit-code 1`, `signal 9`, `oom-kill`
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
    """Runs VMs in slots. Raises VmError if the service manager or the file system refuses."""

    async def start(self, launch: Launch) -> None:
        """Start a VM in its slot; return once its process runs, before it has booted.

        A clone is loaded from its template then, but stays paused until `resume`.
        """

    async def templates(self) -> TemplatesReport:
        """Report the templates, and from what a VM that starts now is made.

        Raises ImageError if there is no golden image.
        """

    async def resume(self, slot: int, vm_id: str) -> None:
        """Resume a paused VM."""

    async def pause(self, slot: int, vm_id: str) -> None:
        """Pause a VM: its processors and its clock stop."""

    async def set_clock(self, slot: int, vm_id: str) -> None:
        """Set the clock of a VM that was resumed."""

    async def identify(self, slot: int, vm_id: str, identity: Identity) -> Receipt:
        """Give a running VM its identity. The receipt says what the guest has applied."""

    async def stop(self, slot: int) -> None:
        """Stop any VM in the slot; return once no process of it is left."""

    async def poll(self, slot: int) -> SlotState:
        """Return the present state of the slot."""

    async def slots(self) -> dict[int, SlotState]:
        """Return every slot in which a VM runs, has failed, or has left files."""

    async def discard(self, slot: int, vm_id: str, *, keep_logs: bool) -> None:
        """Remove a stopped VM's disk and sockets, and its logs too unless `keep_logs`.

        Raises FilesLeft if something cannot be removed; other VMs cannot reach it, so the slot is
        free all the same.
        """

    async def folders(self) -> set[tuple[int, str]]:
        """Return slot and id of every VM that has files."""

    def console(self, slot: int, vm_id: str) -> Path:
        """Return the file of the VM's serial console; it may not exist."""

    def qemu_log(self, slot: int, vm_id: str) -> Path:
        """Return the log file of the VM's QEMU process; it may not exist."""

    async def close(self) -> None:
        """Close connections. VMs run on."""
