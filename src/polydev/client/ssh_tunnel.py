"""An SSH tunnel from a local port to a host's controller."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from polydev.errors import DeployError
from polydev.processes import LineProcess
from polydev.ssh import SshTarget

LOOPBACK = "127.0.0.1"
READY = "polydev-forwards"
OPEN_SECONDS = 30.0
TRIES = 3


@contextmanager
def tunnel(target: SshTarget, url: str) -> Iterator[str]:
    """Forward a free local port to a URL of the host; yield the local URL.

    Raises DeployError with ssh's message.
    """
    scheme, _, address = url.partition("://")
    process, port = _opened(target, address)
    try:
        yield f"{scheme}://{LOOPBACK}:{port}"
    finally:
        process.end()


def _opened(target: SshTarget, address: str) -> tuple[LineProcess, int]:
    said = ""
    for _ in range(TRIES):  # another process may take the free port before ssh does
        port = _free_port()
        process = LineProcess(_argv(target, f"{LOOPBACK}:{port}:{address}"))
        try:
            if process.first_line(OPEN_SECONDS).decode().strip() == READY:
                return process, port
        except BaseException:
            process.end()
            raise
        process.end_group()
        said = process.last_words()
        process.end()
        if "forward" not in said:
            break
    raise DeployError(
        f"cannot reach {target.name} over SSH: {said or f'no answer within {OPEN_SECONDS:g} s'}",
        f"try: {target.by_hand()}",
    )


def _argv(target: SshTarget, forward: str) -> list[str]:
    """Return the ssh command that forwards the port and prints one line when it does."""
    options = ["PermitLocalCommand=yes", f"LocalCommand=echo {READY}"]
    # Over a shared connection, the forwarding would outlive this process.
    options += ["ExitOnForwardFailure=yes", "ControlMaster=no", "ControlPath=none"]
    words = [word for option in options for word in ("-o", option)]
    return target.ssh_argv("-N", "-L", forward, *words)


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind((LOOPBACK, 0))
        return int(opened.getsockname()[1])
