"""Whether a VM's screen answers: the greeting of its VNC server."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from polydev.errors import VmError
from polydev.vm.config import VNC_PORT
from polydev.vm.timeouts import within

# RFC 6143, 7.1.1: "RFB 003.008\n".
GREETING_START, GREETING_BYTES = b"RFB ", 12
RETRY_SECONDS = 0.1


async def screen_answers(address: str, seconds: float) -> None:
    """Wait until the screen of the VM at that address greets. Raises VmError where it does not.

    The first greeting costs an emulated clone more than all later ones.
    """
    await within(seconds, _until_greeted(address), "the greeting of the VM's screen")


async def _until_greeted(address: str) -> None:
    while True:
        with suppress(OSError, EOFError):
            if (await _said(address)).startswith(GREETING_START):
                return
            raise VmError("the VM's screen speaks no RFB")
        await asyncio.sleep(RETRY_SECONDS)


async def _said(address: str) -> bytes:
    reader, writer = await asyncio.open_connection(address, VNC_PORT)
    try:
        return await reader.readexactly(GREETING_BYTES)
    finally:
        writer.close()
