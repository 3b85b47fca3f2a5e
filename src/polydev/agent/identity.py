"""Apply the identity that the host sends to this VM over a virtio-serial port.

A clone starts with a copy of another VM's memory. Before anybody uses it, its kernel needs fresh
entropy and the time, and the VM needs its own names and secret:

    a line of words from the host -> Guest.take -> a line with the new values, the receipt

The service runs before the template is saved, so that a clone answers without starting a program.
"""

from __future__ import annotations

import os
from _socket import sethostname
from _struct import pack
from fcntl import F_SETFL, F_SETOWN, fcntl, ioctl
from signal import SIG_BLOCK, SIGIO, pthread_sigmask, sigwait
from time import CLOCK_REALTIME, clock_settime, monotonic, time

from polydev.agent.vm_facts import SESSION_WORD, VM_WORD, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PORT = "/dev/virtio-ports/polydev.identity"
MAX_LINE_BYTES = 4096
# random(4): add entropy and count it; let the kernel's generator use it at once.
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207
# Chromium's network process, whose random numbers only a new process renews.
NETWORK_PROCESS = "network.mojom.NetworkService"
BROWSER_PROCESSES = "sys/fs/cgroup/system.slice/polydev-browser.service/cgroup.procs"
SIGKILL = 9


class Guest:
    """The files below `root` that have the identity of the system."""

    def __init__(self, root: str = "/") -> None:
        self.identity = f"{root}run/polydev/identity"
        self.secret = f"{root}run/polydev/secret"
        self.boot_id = f"{root}run/polydev/boot_id"
        self.machine_id = f"{root}etc/machine-id"
        self.hosts = f"{root}etc/hosts"
        self.random = f"{root}dev/random"
        self.proc = f"{root}proc"
        self.browser = f"{root}{BROWSER_PROCESSES}"

    def take(self, words: Mapping[str, str], received_at: float) -> dict[str, str]:
        """Apply an identity and return the new values. Raises KeyError, ValueError and OSError.

        `received_at` is a time of the monotonic clock, in seconds.
        """
        self._reseed(bytes.fromhex(words["entropy"]))
        sethostname(words["hostname"])
        _write(self.hosts, f"127.0.0.1 localhost {words['hostname']}\n::1 localhost\n")
        _write(self.machine_id, f"{words['machine_id']}\n")
        _write(self.boot_id, f"{words['boot_id']}\n")
        _write(self.secret, f"{words['secret']}\n", 0o600)
        session = words.get("session", "")
        _write(self.identity, f"{VM_WORD}{words['vm']} {SESSION_WORD}{session}\n")
        end_processes(self.proc, self.browser, NETWORK_PROCESS)
        self.set_clock(words, received_at)
        return {
            "vm": words["vm"],
            "session": session,
            "hostname": os.uname().nodename,
            "machine_id": read_text(self.machine_id).strip(),
            "boot_id": read_text(f"{self.proc}/sys/kernel/random/boot_id").strip(),
            "secret": read_text(self.secret).strip(),
            "random": os.urandom(16).hex(),
            "time": f"{time():.6f}",
        }

    def set_clock(self, words: Mapping[str, str], received_at: float) -> dict[str, str]:
        """Set the clock to the host's time, which was `words["time"]` at `received_at`."""
        clock_settime(CLOCK_REALTIME, float(words["time"]) + monotonic() - received_at)
        return {"time": f"{time():.6f}"}

    def _reseed(self, entropy: bytes) -> None:
        descriptor = os.open(self.random, os.O_WRONLY)
        try:
            size = len(entropy)
            ioctl(descriptor, RNDADDENTROPY, pack("ii", 8 * size, size) + entropy)
            ioctl(descriptor, RNDRESEEDCRNG)
        finally:
            os.close(descriptor)


def end_processes(proc: str, group: str, mark: str) -> None:
    """Kill the processes of a control group whose command line contains `mark`.

    Without that group, all processes are searched, which takes ten times as long.
    """
    for name in read_text(group).split() or filter(str.isdigit, os.listdir(proc)):
        if mark in read_text(f"{proc}/{name}/cmdline"):
            try:
                os.kill(int(name), SIGKILL)
            except OSError:  # it has ended
                pass


def words_of(line: str) -> dict[str, str]:
    """Return the words `name=value` of a line."""
    pairs = [word.partition("=") for word in line.split()]
    return {name: value for name, equals, value in pairs if equals}


def answer(guest: Guest, line: str, received_at: float) -> str:
    """Carry out a line of the host and return the guest's line: a receipt or a refusal."""
    kind = line.partition(" ")[0]
    try:
        verbs: dict[str, Callable[[Mapping[str, str], float], dict[str, str]]]
        verbs = {"identity": guest.take, "clock": guest.set_clock}
        found = verbs[kind](words_of(line), received_at)
    except (KeyError, ValueError, OSError) as error:
        words = f"{type(error).__name__}: {error}".replace("\n", " ")
        return f"refused {words}\n"
    return " ".join([kind, *(f"{name}={value}" for name, value in found.items())]) + "\n"


def serve(port: int, guest: Guest) -> None:
    """Answer each line that comes through the port, without end."""
    # The kernel signals that the host has connected; until then there is nothing to read.
    pthread_sigmask(SIG_BLOCK, [SIGIO])
    fcntl(port, F_SETOWN, os.getpid())
    fcntl(port, F_SETFL, os.O_ASYNC)
    kept = b""
    while True:
        received = os.read(port, MAX_LINE_BYTES)
        received_at = monotonic()
        if not received:
            kept = b""
            sigwait([SIGIO])
            continue
        *lines, kept = (kept + received).split(b"\n")
        kept = kept[-MAX_LINE_BYTES:]
        for line in lines:
            os.write(port, answer(guest, line.decode("ascii", "replace"), received_at).encode())


def main() -> None:
    """Serve until the process is stopped."""
    serve(os.open(PORT, os.O_RDWR), Guest())


def _write(path: str, text: str, mode: int = 0o644) -> None:
    """Write in place, since the file may be mounted over or elsewhere."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)
