"""The window below the browser in which the user sees a tool's terminal and types into it.

xterm shows the other end of a terminal that `login_program` owns. The tool does not wait for xterm,
and without xterm the login works, but shows no window.
"""

from __future__ import annotations

import os
import tty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from polydev.agent.providers import GuestProvider

PROGRAM = "xterm"
PASTES = r"*VT100.translations: #override Ctrl <Key>V: insert-selection(CLIPBOARD)"
LOOKS = [
    *("-fa", "DejaVu Sans Mono", "-fs", "10", "-bg", "#101820", "-fg", "#e8eef4"),
    *("-geometry", "140x12", "-ut", "-xrm", "*selectToClipboard: true", "-xrm", PASTES),
]
CHUNK_BYTES = 4096


class Terminal:
    """One such window.

    descriptor   readable when the user typed something or closed the window
    has_window   whether the window was opened, and so can be closed by the user
    """

    def __init__(self, title: str, environment: Mapping[str, str]) -> None:
        """Open the window. Raises OSError if there is no xterm."""
        window, self.descriptor = os.openpty()
        try:
            tty.setraw(self.descriptor)
            os.set_blocking(self.descriptor, False)
            os.set_inheritable(window, True)
            name = os.path.basename(os.ttyname(self.descriptor))
            argv = [PROGRAM, "-title", title, *LOOKS, f"-S{name}/{window}"]
            os.posix_spawnp(PROGRAM, argv, environment)
        except OSError:
            os.close(self.descriptor)
            raise
        finally:
            os.close(window)
        self.has_window = False
        self._unshown = b""

    def show(self, data: bytes) -> None:
        """Show output, and drop what a slow window cannot take."""
        self._unshown = (self._unshown + data)[-CHUNK_BYTES:]
        if self.has_window:
            try:
                os.write(self.descriptor, self._unshown)
            except OSError:
                pass
            self._unshown = b""

    def typed(self) -> bytes | None:
        """Return new input; None once the window was closed or could not be opened."""
        try:
            data = os.read(self.descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            return None
        if not self.has_window:  # xterm's first line is its window's number
            _, newline, data = data.partition(b"\n")
            self.has_window = bool(newline)
            self.show(b"")
        return data


class Window:
    """The tool's terminal as the user sees it, opened with its first output."""

    def __init__(self, provider: GuestProvider, environment: Mapping[str, str]) -> None:
        self._title = f"Login of {provider.label}"
        # JSON-RPC is not for people.
        self._words = f"{self._title}: go on in the browser.\r\n" if provider.requests else ""
        self._environment = environment
        self._terminal: Terminal | None = None
        self._is_opened = False

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (self._terminal.descriptor,) if self._terminal else ()

    def show(self, output: bytes) -> None:
        if not self._is_opened:
            self._is_opened = True
            try:
                self._terminal = Terminal(self._title, self._environment)
            except OSError as error:
                os.write(2, f"no terminal is shown: {error}\n".encode())
            output = self._words.encode() or output
        elif self._words:
            return
        if self._terminal:
            self._terminal.show(output)

    def typed(self) -> bytes | None:
        """Return new input of the user; None once they closed the window."""
        if self._terminal is None:
            return b""
        typed = self._terminal.typed()
        if typed is None and not self._terminal.has_window:
            self._terminal = None  # it could not be opened
            return b""
        return typed
