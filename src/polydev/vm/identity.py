"""The identity of a VM, which its host sends over a virtio-serial port.

    new_identity -> Identity --identity_line--> the guest --receipt_from--> Receipt, checked

A clone's memory is a copy of its template's. Before anybody uses the VM, the guest applies the
identity (`polydev.agent.identity`) and answers with the values that it has then. Pure, except for
the random numbers.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from dataclasses import dataclass, field

from polydev.errors import VmError
from polydev.vm.boot_stages import printable

SECRET_BYTES, ENTROPY_BYTES = 32, 64
MAX_LINE_BYTES = 4096


@dataclass(frozen=True)
class Identity:
    """The values that differ in each VM. Only the VM and its host know `secret`, in hex."""

    vm_id: str
    session_id: str | None
    hostname: str
    machine_id: str
    boot_id: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Receipt:
    """The state of the guest after it took its identity.

    secret_sha256   hash of the guest's secret, in hex
    random          the first random bytes of its kernel afterwards, in hex
    guest_time      its clock when it answered, in seconds since 1970
    """

    vm_id: str
    session_id: str | None
    hostname: str
    machine_id: str
    boot_id: str
    secret_sha256: str
    random: str
    guest_time: float


def new_identity(vm_id: str, session_id: str | None) -> Identity:
    """Return an identity with names derived from the VM's id, and a new secret."""
    named = uuid.uuid5(uuid.NAMESPACE_OID, vm_id).hex
    return Identity(
        vm_id=vm_id,
        session_id=session_id,
        hostname=f"browser-{named[:8]}",
        machine_id=named,
        boot_id=str(uuid.uuid4()),
        secret=secrets.token_hex(SECRET_BYTES),
    )


def identity_line(identity: Identity, time: float) -> bytes:
    """Return the line that sends identity, entropy and time (seconds since 1970) to the guest."""
    once = {"entropy": secrets.token_hex(ENTROPY_BYTES), "time": f"{time:.6f}"}
    return _line("identity", {**_lasting_words(identity), **once})


def clock_line(time: float) -> bytes:
    """Return the line that sets the guest's clock again, to seconds since 1970."""
    return _line("clock", {"time": f"{time:.6f}"})


def guest_time_from(line: bytes) -> float:
    """Read the guest's time after it set its clock. Raises VmError."""
    try:
        return float(_words("clock", line)["time"])
    except (KeyError, ValueError) as error:
        raise VmError(f"the guest did not set its clock: {_shown(line)}") from error


def receipt_from(line: bytes, identity: Identity) -> Receipt:
    """Read the receipt of an identity. Raises VmError if the guest refused or changed it."""
    words, expected = _words("identity", line), _lasting_words(identity)
    if wrong := [name for name, value in expected.items() if words.get(name) != value]:
        raise VmError(f"the guest's receipt differs from its identity: {', '.join(wrong)}")
    try:
        random, guest_time = bytes.fromhex(words["random"]), float(words["time"])
    except (KeyError, ValueError) as error:
        raise VmError(f"the guest's receipt is not complete: {error}") from error
    return Receipt(
        vm_id=identity.vm_id,
        session_id=identity.session_id,
        hostname=identity.hostname,
        machine_id=identity.machine_id,
        boot_id=identity.boot_id,
        secret_sha256=hashlib.sha256(identity.secret.encode()).hexdigest(),
        random=random.hex(),
        guest_time=guest_time,
    )


def answers_another(line: bytes, identity: Identity) -> bool:
    """Return whether the guest's line answers another request than that of this identity."""
    kind, _, rest = line.decode("ascii", "replace").partition(" ")
    if kind == "identity":
        return f"secret={identity.secret}" not in rest.split()
    return kind == "clock"


def _lasting_words(identity: Identity) -> dict[str, str]:
    """The words that the guest gets and must send back."""
    return {
        "vm": identity.vm_id,
        "session": identity.session_id or "",
        "hostname": identity.hostname,
        "machine_id": identity.machine_id,
        "boot_id": identity.boot_id,
        "secret": identity.secret,
    }


def _line(kind: str, words: dict[str, str]) -> bytes:
    return " ".join([kind, *(f"{name}={value}" for name, value in words.items())]).encode() + b"\n"


def _words(kind: str, line: bytes) -> dict[str, str]:
    words = line.decode("ascii", "replace").split()
    if words[:1] != [kind]:
        raise VmError(f"the guest refused the {kind}: {_shown(line)}")
    pairs = [word.partition("=") for word in words[1:]]
    return {name: value for name, _, value in pairs}


def _shown(line: bytes) -> str:
    text = line.decode("ascii", "replace").strip()[:200]
    return printable(text)
