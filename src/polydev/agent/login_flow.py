"""The flow of one login: from the output of its tool and the pages that it opens to its state.

It passes states of the login to `keep` and pages to `show`. It waits for nothing itself.
"""

from __future__ import annotations

import re
from time import monotonic

from polydev.agent.errors import CheckFailed
from polydev.agent.login_output import (
    TAIL_LINES,
    answer_to,
    device_code,
    end_of,
    printed_url,
    without_input,
)
from polydev.agent.login_url import is_login_url
from polydev.agent.terminal_text import last_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polydev.agent.providers import GuestProvider
    from polydev.agent.reply_types import LoginStatus

    Keep = Callable[[LoginStatus, str | None, str, str | None], None]
    Outcome = tuple[LoginStatus, str]

MAX_WRITTEN_CHARACTERS = 65536
MAX_PAGES = 8
MAX_TYPED_LINES = 32
SHOW_AGAIN_SECONDS = 2.0


class LoginFlow:
    """Follows what a tool does. `show` raises CheckFailed while no browser accepts a page."""

    def __init__(
        self,
        provider: GuestProvider,
        keep: Keep,
        show: Callable[[str], None],
        page_seconds: float,
        quiet_seconds: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._provider = provider
        self._keep = keep
        self._show = show
        self._page_seconds = page_seconds
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._began_at = clock()
        self._written = ""
        self._opened = b""
        self._typed: list[str] = []
        self._typing = ""
        self._url: str | None = None
        self._device_code: str | None = None
        self._is_closed = False
        self._is_printed = False
        self._printed = ""
        self._printed_at: float | None = None
        self._pages: list[str] = []
        self._shown = 0

    def begin(self) -> None:
        self._tell("starting")

    def take_output(self, data: bytes) -> None:
        """Process output of the tool."""
        written = self._written + data.decode("utf-8", "replace")
        self._written = written[-MAX_WRITTEN_CHARACTERS:]
        if self._url is None and (printed := printed_url(self._provider, self._written)):
            self._printed = printed  # updated with each output, since it comes in pieces
            self._printed_at = self._printed_at or self._clock()
        if self._device_code is None:
            self._device_code = device_code(self._provider, self._written)
            if self._device_code is not None and self._url is not None:
                self._tell("waiting")

    def take_opened_pages(self, data: bytes) -> None:
        """Process pages that the tool opens, one per line."""
        *lines, self._opened = (self._opened + data).split(b"\n")
        for line in lines:
            page = line.decode("utf-8", "replace")
            if is_login_url(page) and page not in self._pages and len(self._pages) < MAX_PAGES:
                self._add(page, is_printed=False)

    def take_typed(self, data: bytes) -> None:
        """Note input of the terminal: codes and passwords, which no message may contain."""
        *lines, self._typing = re.split(r"[\r\n]", self._typing + data.decode("utf-8", "replace"))
        self._typing = self._typing[-MAX_WRITTEN_CHARACTERS:]
        self._typed = [*self._typed, *lines][-MAX_TYPED_LINES:]

    def retry_pages(self) -> None:
        """Try the browser again, or use the printed URL if the tool opened no page."""
        if self._printed_left() == 0.0:
            self._add(self._printed, is_printed=True)
        else:
            self._show_pages()

    def pause_seconds(self) -> float | None:
        """Return how long `retry_pages` has nothing to do; None if only new input changes that."""
        if self._shown < len(self._pages):
            return SHOW_AGAIN_SECONDS
        left = (self._printed_left(), self._page_left())
        return min((each for each in left if each is not None), default=None)

    def is_over(self) -> bool:
        """Whether the tool answered, was closed, or has opened no page within its time."""
        if self._is_closed or self._page_left() == 0.0:
            return True
        return answer_to(self._provider, self._written) is not None

    def close(self) -> None:
        """The user has closed the terminal that the tool runs in."""
        self._is_closed = True

    def end(self, exit_code: int, confirm: Callable[[], Outcome]) -> None:
        """Process the end of the tool; a negative exit code is a signal's number.

        `confirm` is called if the tool reports success, and returns whether it is logged in.
        """
        status, detail = (
            answer_to(self._provider, self._written)
            or self._closing()
            or self._lateness(exit_code)
            or end_of(self._provider, exit_code, self._written)
        )
        if status == "done":
            status, detail = confirm()
        self._tell(status, detail)

    def _tell(self, status: LoginStatus, detail: str = "") -> None:
        hidden = without_input(detail, [*self._typed, self._typing])
        self._keep(status, self._url, hidden, self._device_code)

    def _closing(self) -> Outcome | None:
        return ("failed", "the login's terminal was closed") if self._is_closed else None

    def _lateness(self, exit_code: int) -> Outcome | None:
        if exit_code == 0 or self._page_left() != 0.0:
            return None
        within = f"within {self._page_seconds:g} s"
        what = f"{self._provider.command[0]} opened no login page {within}"
        return "failed", f"{what}: {last_lines(self._written, TAIL_LINES)}".rstrip(": ")

    def _page_left(self) -> float | None:
        """Seconds until the time for a page is over; None once there is one."""
        if self._url is not None:
            return None
        return max(0.0, self._began_at + self._page_seconds - self._clock())

    def _printed_left(self) -> float | None:
        """Seconds until the printed URL is used; None if there is none to use."""
        if self._printed_at is None or self._url is not None:
            return None
        if self._device_code is not None:  # it belongs to the printed URL
            return 0.0
        return max(0.0, self._printed_at + self._quiet_seconds - self._clock())

    def _add(self, page: str, *, is_printed: bool) -> None:
        """Add a page. The first one is the login's, but an opened page replaces a printed one."""
        if self._url is None or self._is_printed:
            self._url, self._is_printed = page, is_printed
        self._pages.append(page)
        self._tell("waiting")
        self._show_pages()

    def _show_pages(self) -> None:
        while self._shown < len(self._pages):
            try:
                self._show(self._pages[self._shown])
            except CheckFailed as failure:
                self._tell("waiting", str(failure))
                return
            self._shown += 1
            self._tell("waiting")
