"""What a VM is made of: one frozen value, from which everything else follows."""

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
    """Where a VM's ports are reached on this machine's loopback; 0 where not yet known."""

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

    private     of a clone: changes stay in the VM, which waits for the state of its devices;
                otherwise the file changes with the memory
    """

    path: Path
    private: bool


@dataclass(frozen=True)
class VmConfig:
    """One VM. `folder` holds its disk, sockets and logs; sizes as their names say.

    ports           where user-mode NAT makes the guest's ports reachable; nowhere with a `tap`
    tap             the TAP of this name joins the guest to a network that is there already
    session_id      whose session the VM serves, if anybody's
    translation_cache_mib   TCG's: 1 GiB saves a browser's start from translating twice
    test_console    a root shell on a second serial port: for boots that test, never in use
    memory_file     what holds the memory of a template or a clone; of others, nothing does
    outbound        whether the guest reaches beyond its own network (user-mode NAT, through
                    which it reaches this machine's loopback services too)
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
        """Leads to the guest's service that takes an identity."""
        return self.folder / "identity.sock"
