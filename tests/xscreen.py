"""A real screen for a fake VM: TigerVNC's X server, as in the golden image.

async with x_screens(folder) as screen:
    session = await made.session(screen)
    screen.start("xterm", "-e", "cat")
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

from polydev.processes import Process, end_group, run, spawn
from tests.driving import until

WIDTH, HEIGHT = 1024, 640
# The title of the terminal's window.
TERMINAL = "terminal"
OPTIONS = "-rfbport=-1 -SecurityTypes None -AlwaysShared -depth 24 -nolisten tcp -ac -noreset"


class Typed:
    """The lines that were typed on a terminal."""

    def __init__(self, screen: XScreen, file: Path) -> None:
        self.screen = screen
        self.file = file

    async def began(self) -> None:
        """Wait until the terminal is on the screen, where it gets the keys, and reads."""

        async def is_there() -> bool:
            if not self.file.exists():
                return False
            window = await self.screen.run("xwininfo", "-name", TERMINAL, check=False)
            return "IsViewable" in window

        await until(is_there, "the terminal")

    async def until(self, text: str) -> None:
        """Wait until exactly this text was typed."""

        async def has_come() -> bool:
            return self.file.read_text() == text

        await until(has_come, f"{text!r} on the terminal")


class XScreen:
    """Serves one connection to the VM's screen when called; programs run on its display."""

    def __init__(self, folder: Path, display: str, ended: ExitStack) -> None:
        self.folder = folder
        self.display = display
        self._ended = ended

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        vnc_reader, vnc_writer = await asyncio.open_unix_connection(self.folder / "rfb")
        with closing(vnc_writer):
            await first_of(pumped(reader, vnc_writer), pumped(vnc_reader, writer))

    def start(self, *argv: str) -> Process:
        """Start a program in the background; its output goes to a file of its name."""
        output = (self.folder / Path(argv[0]).name).open("wb")
        self._ended.callback(output.close)
        process = spawn(argv, env={"DISPLAY": self.display}, stdout=output, stderr=output)
        self._ended.callback(end_group, process)
        return process

    async def run(self, *argv: str, text: str | None = None, check: bool = True) -> str:
        """Run a program with `text` as its input; return its output, unless it fails."""
        env = {"DISPLAY": self.display}
        words: dict[str, Any] = {"env": env, "input": text, "check": check, "timeout_seconds": 60}
        ran = await asyncio.to_thread(run, argv, **words)
        return ran.stdout if ran.status == 0 else ""

    async def copy(self, text: str) -> None:
        """Copy `text` as a program in the VM does; it keeps it until another program copies."""
        file = self.folder / "copied"
        file.write_text(text)
        # xclip lives on as the selection's owner, so nobody waits for the end of its output.
        self.start("xclip", "-quiet", "-selection", "clipboard", "-i", str(file))

    async def pasted(self) -> str:
        """Return the text that a program in the VM would paste; "" before any was copied."""
        return await self.run("xclip", "-selection", "clipboard", "-o", check=False)

    def terminal(self) -> Typed:
        """A terminal as large as the screen, in which Ctrl+V pastes as in most programs.

        What is typed is there at once, also before the end of its line.
        """
        typed = Typed(self, self.folder / "typed")
        pastes = "XTerm*VT100.Translations: #override Ctrl<Key>V: insert-selection(CLIPBOARD)"
        looks = ["-geometry", "200x80+0+0", "-fa", "Mono", "-bg", "white", "-fg", "black"]
        looks += ["-T", TERMINAL, "-xrm", pastes]
        self.start("xterm", *looks, "-e", f"stty -icanon; cat > {typed.file}")
        return typed

    def said(self, program: str) -> str:
        """Return the output of a started program until now."""
        return (self.folder / program).read_text(errors="replace")


async def first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Run them until the first has ended."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def pumped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def x_screens(
    folder: Path, width: int = WIDTH, height: int = HEIGHT
) -> AsyncIterator[XScreen]:
    """Run an X display whose server accepts VNC at a socket in the empty `folder`."""
    with ExitStack() as ended:
        readable, writable = os.pipe()
        ended.callback(os.close, readable)
        options = ["-displayfd", str(writable), "-rfbunixpath", str(folder / "rfb")]
        log = ended.enter_context((folder / "vnc.log").open("wb"))
        try:
            server = spawn(
                ["Xtigervnc", *options, *OPTIONS.split(), "-geometry", f"{width}x{height}"],
                stdout=log,
                stderr=log,
                pass_fds=(writable,),
            )
        finally:
            os.close(writable)
        ended.callback(end_group, server)
        number = await asyncio.to_thread(os.read, readable, 16)
        assert number, (folder / "vnc.log").read_text()
        yield XScreen(folder, f":{number.decode().strip()}", ended)
