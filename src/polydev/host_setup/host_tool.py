"""The host tool: one file, which the host's own Python runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pyinfra.api.command import StringCommand
from pyinfra.context import host

from polydev import hosttool
from polydev.host_layout import HOST_HOME, HOST_TOOL
from polydev.host_setup.host_files_and_units import TOOL
from polydev.host_setup.pyinfra_operations import directory, opaque_file, show_diff
from polydev.host_setup.pyinfra_types import Commands, concern, operation
from polydev.hosttool.paths import Paths
from polydev.hosttool.zipapp import zipapp_bytes


@operation
def keep_reserve(differences: list[str]) -> Commands:
    """Reserve disk space for a restore; a new host gets the reserve with its first backup.

    Not files.file: the reserve is a file of a size that the host tool decides.
    """
    if not differences:
        host.noop("disk space for a restore is reserved")
        return
    show_diff("\n".join(differences))
    yield StringCommand(f"{TOOL} reserve keep")


@concern("Host tool")
def host_tool(reserve: list[str]) -> None:
    """A deployment has installed it before its plan, to take the lock: then nothing is to do.

    A plan alone installs nothing, and shows here that the host has another one.
    """
    directory(str(HOST_HOME))
    directory(str(HOST_TOOL.parent))
    opaque_file(TOOL, tool_bytes())
    keep_reserve(name=str(Paths().reserve), differences=reserve)


@cache
def tool_bytes() -> bytes:
    return zipapp_bytes(Path(hosttool.__file__).parent)
