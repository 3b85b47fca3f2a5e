"""systemctl of a guest that is a folder of this machine: it knows the units of logins only.

    python -m tests.guest_systemctl FOLDER start --no-ask-password polydev-login@NAME.service

As systemd does with this unit: two starts at the same time are one, a start returns once the
program has said that it is ready, and after the program's end its ExecStopPost= runs. FOLDER/starts
has a line for each program that was started.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

CODE = "import os, sys; from polydev.agent.login_program import {0}; {0}({1})"
BOTH = 'main=$1 end=$2; shift 2; "$0" -c "$main" "$@"; "$0" -c "$end"'


def start(folder: Path, name: str) -> None:
    with (folder / "job").open("w") as job, (folder / "active").open("w") as active:
        fcntl.flock(job, fcntl.LOCK_EX)
        try:
            fcntl.flock(active, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        with (folder / "starts").open("a") as starts:
            print(name, file=starts)
        _start(folder, name, active.fileno())


def _start(folder: Path, name: str, active: int) -> None:
    """Start the program and wait until it is ready. It holds the lock `active` until its end."""
    own = folder / "logins" / name
    own.mkdir(parents=True, exist_ok=True)
    notified = own / "notify"
    notified.unlink(missing_ok=True)
    codes = (CODE.format("main", "sys.argv[1:]"), CODE.format("note_end", "os.environ"))
    words = (name, f"--login-programs={folder}/bin", f"--providers={folder}/providers")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
        (folder / "log").open("a") as log,
    ):
        ready.bind(str(notified))
        subprocess.Popen(
            ["sh", "-c", BOTH, sys.executable, *codes, *words],
            env={
                "PATH": os.defpath,
                "PYTHONPATH": os.environ["PYTHONPATH"],
                "HOME": f"{folder}/home",
                "RUNTIME_DIRECTORY": str(own),
                "NOTIFY_SOCKET": str(notified),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[active],
            start_new_session=True,
        )
        assert ready.recv(4096).startswith(b"READY=1")


if __name__ == "__main__":
    at, verb, _, unit = sys.argv[1:]
    template, _, rest = unit.partition("@")
    if (verb, template) != ("start", "polydev-login"):
        sys.exit(f"this systemctl does not {verb} {unit}")
    start(Path(at), rest.removesuffix(".service"))
