"""The configuration of a VM as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Accelerator = Literal["kvm", "tcg"]

GUEST_NETWORK = "172.16.0.0/24"
# The virtio-serial port through which a VM gets its identity.
IDENTITY_PORT = "polydev.identity"


@dataclass(frozen=True)
class Ports:
    """The ports on this machine's loopback that lead to a VM; 0 if not chosen yet."""

    agent: int
    vnc: int
    novnc: int
    host: str = "127.0.0.1"

    @property
    def agent_url(self) -> str:
        return f"http://{self.host}:{self.agent}"

    @property
    def novnc_url(self) -> str:
        return f"http://{self.host}:{self.novnc}"

    @property
    def viewer_url(self) -> str:
        """The page that shows the desktop at once."""
        return f"{self.novnc_url}/vnc.html?autoconnect=true&resize=scale&reconnect=true"


NO_PORTS = Ports(agent=0, vnc=0, novnc=0)


@dataclass(frozen=True)
class MemoryFile:
    """A file that holds the guest's memory.

    private     for a clone: the file stays as it is, and the VM waits for the state of its
                devices; otherwise the file changes with the memory
    """

    path: Path
    private: bool


@dataclass(frozen=True)
class VmConfig:
    """One VM. `folder` has its disk, sockets and logs.

    ports           where user-mode NAT makes the guest's ports reachable; unused with a `tap`
    tap             name of the TAP that joins the guest to an existing network
    session_id      the session that the VM serves, if any
    translation_cache_mib   of TCG: with 1 GiB, a browser's start translates nothing twice
    test_console    a root shell on a second serial port: for verifications only
    memory_file     the file with the memory of a template or a clone; None for other VMs
    outbound        whether the guest reaches other networks (by user-mode NAT, through which it
                    also reaches loopback services of this machine)
    """

    vm_id: str
    folder: Path
    kernel: Path
    initrd: Path
    cmdline: str
    rootfs: Path
    image_digest: str
    ports: Ports = NO_PORTS
    tap: str | None = None
    session_id: str | None = None
    accelerator: Accelerator = "tcg"
    cpus: int = 2
    memory_mib: int = 2048
    translation_cache_mib: int = 1024
    mac: str = "52:54:00:16:00:02"
    test_console: bool = False
    outbound: bool = False
    memory_file: MemoryFile | None = None

    @property
    def is_clone(self) -> bool:
        return self.memory_file is not None and self.memory_file.private

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def serial_log(self) -> Path:
        return self.folder / "serial.log"

    @property
    def qemu_log(self) -> Path:
        return self.folder / "qemu.log"

    @property
    def qmp_socket(self) -> Path:
        return self.folder / "qmp.sock"

    @property
    def console_socket(self) -> Path:
        return self.folder / "console.sock"

    @property
    def identity_socket(self) -> Path:
        """The socket that leads to the guest's identity service."""
        return self.folder / "identity.sock"
