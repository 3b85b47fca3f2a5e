"""The host tool: one file that the host's own Python runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from polydev import hosttool
from polydev.deploys.operations import TOOL, directory, opaque_file
from polydev.deploys.typed import concern
from polydev.hosttool.pack import zipapp_bytes


@concern("Host tool")
def host_tool() -> None:
    directory("/opt/polydev-ai")
    directory("/opt/polydev-ai/bin")
    opaque_file(TOOL, tool_bytes())


@cache
def tool_bytes() -> bytes:
    return zipapp_bytes(Path(hosttool.__file__).parent)
