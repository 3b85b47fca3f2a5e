"""The API's answers about VMs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field

from polydev.controller.api_model import ApiModel
from polydev.controller.entities import Session, Vm
from polydev.controller.session_and_vm_states import LIVE_VM_STATES, VmState
from polydev.host_layout import AGENT_PORT, NOVNC_PORT, VNC_PORT
from polydev.vm.boot_stages import Stage

VM_EXAMPLE: dict[str, Any] = {
    "vmId": "9e1c0b1a-8a0c-4f38-bb0c-3f7a6d7a2b11",
    "vmIP": "192.168.100.2",
    "slot": 2,
    "status": "ready",
    "stage": "ready",
    "imageDigest": "4f1d0c2b9a7e4f1d0c2b9a7e4f1d0c2b9a7e4f1d0c2b9a7e4f1d0c2b9a7e4f1d",
    "createdAt": "2026-11-21T10:15:00Z",
    "readyAt": "2026-11-21T10:15:22Z",
    "endedAt": None,
    "releasedAt": None,
    "pooled": False,
    "pausedAt": None,
    "ports": {"agent": AGENT_PORT, "vnc": VNC_PORT, "novnc": NOVNC_PORT},
}
SESSION_VM_EXAMPLE: dict[str, Any] = {
    **VM_EXAMPLE,
    "created": 1795256100000,
    "lastHeartbeat": 1795256160000,
}


class VmPorts(ApiModel):
    """Open ports of the VM: its agent, and its screen as RFB and as noVNC's WebSocket."""

    agent: int = AGENT_PORT
    vnc: int = VNC_PORT
    novnc: int = NOVNC_PORT


class VmAnswer(ApiModel):
    """A VM. Another VM may have its slot and address after `releasedAt`.

    pooled      whether it waits for a session
    pausedAt    when it was paused; it is resumed when somebody needs it
    """

    model_config = ConfigDict(title="Vm", json_schema_extra={"examples": [VM_EXAMPLE]})

    vm_id: str
    vm_ip: str = Field(alias="vmIP")
    slot: int
    status: VmState
    stage: Stage
    image_digest: str
    created_at: datetime
    ready_at: datetime | None
    ended_at: datetime | None
    released_at: datetime | None
    pooled: bool
    paused_at: datetime | None
    ports: VmPorts = VmPorts()


class SessionVmAnswer(VmAnswer):
    """A session's VM, with two fields for older clients, in milliseconds since 1970.

    created         when the session was started
    lastHeartbeat   when the session was used last; `created` if it was not used yet
    """

    model_config = ConfigDict(
        title="SessionVm", json_schema_extra={"examples": [SESSION_VM_EXAMPLE]}
    )

    created: int
    last_heartbeat: int


class VmList(ApiModel):
    """Newest first. Send `next` as `before` to get the next page; null: this is the last one."""

    vms: list[VmAnswer]
    next: str | None


class ConsoleAnswer(ApiModel):
    """The end of a VM's serial console, without control sequences."""

    vm_id: str
    lines: list[str]


def vm_answer(vm: Vm) -> VmAnswer:
    return VmAnswer(
        vm_id=vm.id,
        vm_ip=vm.vm_ip,
        slot=vm.slot,
        status=vm.state,
        stage=vm.stage,
        image_digest=vm.image_digest,
        created_at=vm.created_at,
        ready_at=vm.ready_at,
        ended_at=vm.ended_at,
        released_at=vm.released_at,
        pooled=vm.pooled,
        paused_at=vm.paused_at,
    )


def session_vm_answer(session: Session, vm: Vm) -> SessionVmAnswer:
    return SessionVmAnswer(
        **dict(vm_answer(vm)),
        created=_milliseconds(session.created_at),
        last_heartbeat=_milliseconds(session.heartbeat_at or session.created_at),
    )


def _milliseconds(at: datetime) -> int:
    """Return milliseconds since 1970."""
    return round(at.timestamp() * 1000)


def is_live(vm: Vm) -> bool:
    """Whether the VM is up or starting: only then may its address be used."""
    return vm.state in LIVE_VM_STATES
