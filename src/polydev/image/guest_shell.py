"""The test console: a root shell in a VM over its second serial port, for verifications.

The shell is systemd's debug shell, which the kernel's command line asks for. VMs of sessions have
neither that word nor that port. The client starts a loop of a few lines of Python in the shell,
which runs commands and answers in JSON. That costs an emulated guest a third of what separating
output, errors and status by shell commands would. One client at a time can use the port.
"""

from __future__ import annotations

import base64
import json
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from polydev.errors import VmError, VmTimeout

READ_BYTES = 65536
KNOCK_SECONDS = 3.0
READY = b"polydev-console-is-ready\n"

# Each line is a command as a JSON string. Any other line is the greeting of a new client.
_LOOP = """
import base64, json, subprocess, sys
text = lambda data: base64.b64encode(data).decode()
def answer(line):
    try:
        command = json.loads(line)
    except ValueError:
        return "polydev-console-is-" + "ready"
    done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, capture_output=True)
    return json.dumps([done.returncode, text(done.stdout), text(done.stderr)])
print(answer("knock"), flush=True)
for line in sys.stdin:
    print(answer(line), flush=True)
"""


@dataclass(frozen=True)
class ShellResult:
    """The result of a command in the guest."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


class GuestShell:
    """A connection to the shell, to be used as a context manager."""

    def __init__(self, path: Path, timeout_seconds: float = 30.0) -> None:
        self.timeout_seconds = timeout_seconds
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_seconds)
        self._buffer = b""
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise VmError(
                f"cannot connect to the test console at {path}: {error.strerror}",
                "only verifications have one, for one client at a time",
            ) from error

    def __enter__(self) -> GuestShell:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def open_shell(self, timeout_seconds: float) -> None:
        """Wait until the guest answers on the console. Raises VmError if it does not in time."""
        code = base64.b64encode(_LOOP.encode()).decode()
        start = f"import base64; exec(base64.b64decode('{code}'))"
        knock = f"stty raw -echo; exec python3 -I -S -c {shlex.quote(start)}\n".encode()
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._send(knock)
            try:
                self._read_until(READY, KNOCK_SECONDS)
                return
            except VmError as error:
                if time.monotonic() > deadline or "closed" in error.message:
                    raise

    def run(self, command: str, timeout_seconds: float | None = None) -> ShellResult:
        """Run a shell command and wait for its end. Raises VmError if no answer comes."""
        self._send(json.dumps(command).encode() + b"\n")
        said = self._read_until(b"]\n", timeout_seconds or self.timeout_seconds)
        try:
            # Late answers to greetings may come before it.
            status, stdout, stderr = json.loads(said[said.rindex(b"[") :] + b"]")
            return ShellResult(int(status), base64.b64decode(stdout), base64.b64decode(stderr))
        except (ValueError, TypeError, RecursionError) as error:
            raise VmError(f"cannot read the console's answer to {command!r}") from error

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise VmError(f"the test console was closed: {error.strerror}") from error

    def _read_until(self, mark: bytes, timeout_seconds: float) -> bytes:
        deadline = time.monotonic() + timeout_seconds
        while mark not in self._buffer:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                received = self._socket.recv(READ_BYTES)
            except TimeoutError:
                received = None
            if received == b"":
                raise VmError("the test console was closed: the VM ended")
            if received is None or time.monotonic() > deadline:
                raise VmTimeout(f"the test console did not answer within {timeout_seconds:g} s")
            self._buffer += received.replace(b"\r\n", b"\n")
        said, _, self._buffer = self._buffer.partition(mark)
        return said
