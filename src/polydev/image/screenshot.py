"""Screenshots of a guest, taken over VNC as a viewer does.

Importing the libraries would take a quarter of each start of `./inv`, so they are imported when a
screenshot is taken.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from polydev.vm.cancel_on_timeout import limited
from polydev.vm.config import Ports

TIMEOUT_SECONDS = 60.0


def take_screenshot(ports: Ports, file: Path) -> bool:
    """Write the screen to `file` (PNG); return whether there was one."""
    try:
        asyncio.run(limited(TIMEOUT_SECONDS, _capture(ports, file)))
    except (OSError, EOFError, ValueError, asyncio.IncompleteReadError, asyncio.TimeoutError):
        return False
    return True


async def _capture(ports: Ports, file: Path) -> None:
    import asyncvnc
    from PIL import Image

    async with asyncvnc.connect(ports.host, ports.vnc) as client:
        Image.fromarray(await client.screenshot()).convert("RGB").save(file)
