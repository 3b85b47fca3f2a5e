"""A root shell in a VM over its second serial port, for boots that test.

The shell is systemd's own debug shell, asked for on the kernel's command line; in production
boots there is neither that word nor that port. One client at a time can use it.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from polydev.errors import VmError

RETRY_SECONDS = 0.2
READ_BYTES = 65536


@dataclass(frozen=True)
class Answer:
    """What a command in the guest left behind."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


class Console:
    """A connection to the shell; use it as a context manager."""

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
                f"no console at {path}: {error.strerror}",
                "only boots that test have one; another client may be using it",
            ) from error

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def open_shell(self, timeout_seconds: float) -> None:
        """Wait for the shell and make it one that a program can talk to.

        Raises VmError when none answers in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            mark = secrets.token_hex(8)
            # The quotes keep the mark apart from its echo, should the terminal still echo.
            self._socket.sendall(f"exec sh\nstty raw -echo; echo {mark[:4]}''{mark[4:]}\n".encode())
            try:
                self._read_until(mark.encode() + b"\n", min(2.0, timeout_seconds))
            except VmError:
                if time.monotonic() > deadline:
                    raise VmError("no shell answers on the test console") from None
                continue
            return

    def run(self, command: str, timeout_seconds: float | None = None) -> Answer:
        """Run a shell command and wait for its end."""
        mark = secrets.token_hex(8)
        out, err = f"/run/polydev-{mark}.out", f"/run/polydev-{mark}.err"
        script = (
            f"sh -c {shlex.quote(command)} >{out} 2>{err} </dev/null; s=$?; "
            f"echo; echo {mark[:4]}''{mark[4:]} $s; base64 -w0 {out}; echo; base64 -w0 {err}; "
            f"echo; echo end-{mark[:4]}''{mark[4:]}; rm -f {out} {err}\n"
        )
        self._socket.sendall(script.encode())
        said = self._read_until(f"end-{mark}\n".encode(), timeout_seconds or self.timeout_seconds)
        _, _, answer = said.rpartition(mark.encode() + b" ")
        status, stdout, stderr, *_ = answer.split(b"\n")
        try:
            return Answer(int(status), base64.b64decode(stdout), base64.b64decode(stderr))
        except (ValueError, binascii.Error) as error:
            raise VmError(f"the console's answer to {command!r} is garbled") from error

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
                raise VmError(f"the test console did not answer within {timeout_seconds:g} s")
            self._buffer += received.replace(b"\r\n", b"\n")
        said, _, self._buffer = self._buffer.partition(mark)
        return said
