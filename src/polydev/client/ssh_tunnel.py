"""A host's controller reached through SSH: a port of loopback here that leads to it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from polydev.errors import DeployError
from polydev.run import LineProcess
from polydev.ssh import SshTarget

LOOPBACK = "127.0.0.1"
READY = "polydev-forwards"
OPEN_SECONDS = 30.0
TRIES = 3


@contextmanager
def tunnel(target: SshTarget, url: str) -> Iterator[str]:
    """Lead a free port here to a URL as the host sees it; the URL here, while this lasts.

    Raises DeployError with what ssh said.
    """
    scheme, _, address = url.partition("://")
    process, port = _opened(target, address)
    try:
        yield f"{scheme}://{LOOPBACK}:{port}"
    finally:
        process.end()


def _opened(target: SshTarget, address: str) -> tuple[LineProcess, int]:
    said = ""
    for _ in range(TRIES):  # a port that is free now may be taken before ssh has it
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
    """Return ssh that forwards, says so in one line, and does nothing else."""
    options = ["PermitLocalCommand=yes", f"LocalCommand=echo {READY}"]
    # With a connection that others share, the forwarding would outlive this process.
    options += ["ExitOnForwardFailure=yes", "ControlMaster=no", "ControlPath=none"]
    words = [word for option in options for word in ("-o", option)]
    return target.ssh_argv("-N", "-L", forward, *words)


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind((LOOPBACK, 0))
        return int(opened.getsockname()[1])
