"""The lab: a throw-away Debian host with a real systemd, in a container, reached over SSH."""

from polydev.errors import LabError
from polydev.lab.access import Logs, logs, run_inside, shell, ssh_argv
from polydev.lab.lab_record import Lab
from polydev.lab.lifecycle import down, find, labs, reset, restart, save, up

__all__ = [
    "Lab",
    "LabError",
    "Logs",
    "down",
    "find",
    "labs",
    "logs",
    "reset",
    "restart",
    "run_inside",
    "save",
    "shell",
    "ssh_argv",
    "up",
]
