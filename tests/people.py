"""People at web browsers of their own, who use the pages of a deployed host.

    with sync_playwright() as playwright, person(playwright, api) as ada:
        ada.sign_in()
        session_id = ada.start("claude")
        ada.until_shown()
        ada.check("screen")

Each state that a session's page shows is compared with the API's answer. Any error in the console
fails, but for those that the person `expects`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import ConsoleMessage, Page, Playwright

from tests.browser import CHROMIUM, OPTIONS
from tests.guest_screen import (
    IS_LIGHT,
    PATIENCE_MS,
    SCREEN,
    SESSION_CANVAS,
    TAB_STRIP,
    paint_in_guest,
)
from tests.sessions import Api

LIVE_KINDS = frozenset(("screen", "connecting", "lost", "given-up"))
# The page's states that are true of a session with this status in the API.
TRUE_KINDS = {
    "vm_creating": frozenset(("coming",)),
    "vm_starting": frozenset(("coming",)),
    "vm_created": LIVE_KINDS,
    "failed": frozenset(("over",)),
    "expired": frozenset(("over",)),
    "terminated": frozenset(("over",)),
}
TITLES = {
    "failed": "The VM failed",
    "expired": "The session has expired",
    "terminated": "The session was ended",
}
# Where the guest's browser shows its page, whatever that is.
IN_PAGE = {"x": 640, "y": 500}
EDITABLE = " contenteditable"
# Keeps each state that a session's page has shown, however short.
KEEP_STATES = """
window.states = [];
document.addEventListener("DOMContentLoaded", () => {
    const cover = document.getElementById("cover");
    if (cover === null) return;
    const text = name => document.getElementById(name).textContent;
    const keep = () => {
        const words = ["cover-title", "cover-text"].map(text).join(" ");
        const state = `${cover.dataset.kind}: ${words}`.trim();
        if (states.at(-1) !== state) states.push(state);
    };
    new MutationObserver(keep).observe(
        cover, {attributes: true, childList: true, characterData: true, subtree: true});
    keep();
});
"""
SHOWN = """() => {
    const text = name => document.getElementById(name).textContent;
    return {
        kind: document.getElementById("status").dataset.kind,
        isCovered: !document.getElementById("cover").hidden,
        coverKind: document.getElementById("cover").dataset.kind,
        title: text("cover-title"),
        text: text("cover-text"),
    };
}"""
# Dark pixels of the first line of a page in the guest's browser: what is written there.
INK = """selector => {
    const context = document.querySelector(selector).getContext('2d');
    const {data} = context.getImageData(0, 90, 1000, 40);
    let found = 0;
    for (let at = 0; at < data.length; at += 4)
        if (Math.max(data[at], data[at + 1], data[at + 2]) < 60) found++;
    return found;
}"""
INK_IS = f"""([selector, least, most]) => {{
    const ink = ({INK})(selector);
    return ink >= least && ink <= most;
}}"""
# A caret has less, and blinks.
INK_OF_CARET = 40
INK_OF_WORDS = 80


@dataclass
class Console:
    """The errors of a page's console, but for those that are expected just now."""

    unexpected: list[str] = field(default_factory=list)
    came: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def watch(self, page: Page) -> None:
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.unexpected.append(f"page error: {error}"))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type != "error":
            return
        words = f"{message.text} ({message.location.get('url')})"
        known = any(re.search(each, words) for each in self.expected)
        (self.came if known else self.unexpected).append(words)


@dataclass(frozen=True)
class Person:
    """A user, and the page at which they look in their browser."""

    page: Page
    api: Api
    console: Console
    sockets: list[str]

    @property
    def session_id(self) -> str:
        """The session whose page is open."""
        return self.page.url.rpartition("/")[2]

    def url(self, path: str) -> str:
        return f"{self.api.http.base_url}{path}"

    def sign_in(self) -> None:
        self.page.goto(self.url("/login"))
        submit_token(self.page, self.api.token)
        self.page.wait_for_selector("#providers")

    def start(self, provider: str) -> str:
        """Start a session by its button, and return the id of the session whose page opens."""
        self.page.click(f"[data-start={provider}]")
        self.page.wait_for_url("**/session/*")
        return self.session_id

    def until_shown(self) -> None:
        """Wait until the page shows the screen of the VM, and the VM's browser is on it."""
        self.page.wait_for_selector("#cover", state="hidden")
        place = [SESSION_CANVAS, TAB_STRIP]
        self.page.wait_for_function(IS_LIGHT, arg=place, polling=100, timeout=PATIENCE_MS)

    def until_covered(self, kind: str, *texts: str) -> None:
        """Wait until the session's page shows a card of this kind that says all of these texts."""
        said = "".join(f":has-text({text!r})" for text in texts)
        self.page.wait_for_selector(f"#cover[data-kind={kind}]:not([hidden]) article{said}")

    def states(self) -> list[str]:
        """Return the states that the page has shown since it was loaded."""
        found: list[str] = self.page.evaluate("states")
        return found

    def forget_states(self) -> None:
        self.page.evaluate("states.length = 0")

    def until_shown_again(self, reason: str) -> None:
        """Wait until the page has told of a cut and its reason, and shows the screen again."""
        told = f"lost: The connection was cut {reason}"
        wait = "told => states.includes(told) && states.at(-1).startsWith('screen')"
        self.page.wait_for_function(wait, arg=told)
        self.until_shown()

    def check(
        self, kind: str, ask: Callable[[str], dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Compare the state of the page, of this kind, with the session; return the latter.

        ask     returns the session of this id from the API, where it cannot be asked from here
        """
        shown = self.page.evaluate(SHOWN)
        known = (ask or self.api.session)(self.session_id)
        assert shown["kind"] == shown["coverKind"] == kind, (shown, known)
        assert shown["isCovered"] == (kind != "screen"), shown
        assert kind in TRUE_KINDS[known["status"]], (shown, known)
        assert (known["endedAt"] is not None) == (kind == "over"), known
        if kind == "over":
            reason = known["failure"]["reason"] if known.get("failure") else known["reason"]
            assert shown["title"] == TITLES[known["status"]], known
            if reason:
                assert shown["text"] == f"{reason[0].upper()}{reason[1:]}.", known
        return known

    def check_start_page(self) -> None:
        """Compare the list of sessions of the start page, which is open, with the API's."""
        known = self.api.call("GET", "/api/auth/sessions")["sessions"]
        assert {each["userId"] for each in known} <= {self.api.user_id}
        rows = self.page.locator("#sessions .row .state")
        shown = rows.evaluate_all("rows => rows.map(row => row.dataset.state)")
        assert sorted(shown) == sorted(each["status"] for each in known)

    @contextmanager
    def expects(self, *errors: str) -> Iterator[None]:
        """Let the console report these errors meanwhile: regular expressions."""
        self.console.expected = errors
        try:
            yield
        finally:
            self.page.evaluate("0")  # what the console has said until now comes before the answer
            self.console.expected = ()

    # In the VM

    def open_paper(self, name: str, colour: tuple[int, int, int]) -> None:
        """Open a page of this colour in the guest's browser, on which one can write, by keys."""
        paint_in_guest(self.page, name, colour, more=EDITABLE)

    def write(self, text: str) -> None:
        """Type at the end of what is written on the guest's page, and see the text appear."""
        before = self.ink()
        self.begin_to_write(text)
        self.until_ink(before + INK_OF_WORDS)

    def begin_to_write(self, text: str) -> None:
        self.page.locator(SESSION_CANVAS).click(position=IN_PAGE)  # type: ignore[arg-type]
        self.page.keyboard.type(text)

    def ink(self) -> int:
        found: int = self.page.evaluate(INK, SESSION_CANVAS)
        return found

    def until_ink(self, least: float = 0, *, most: float = 1e9) -> None:
        wanted = [SESSION_CANVAS, least, most]
        self.page.wait_for_function(INK_IS, arg=wanted, polling=100, timeout=PATIENCE_MS)

    def written(self) -> str:
        """Copy the whole text of the guest's page there, and return what comes to this page."""
        self.page.evaluate("document.getElementById('incoming').value = ''")
        self.page.locator(SESSION_CANVAS).click(position=IN_PAGE)  # type: ignore[arg-type]
        before = self.ink()
        self.page.keyboard.press("Control+a")
        self.until_ink(most=before / 2)  # selected text is light
        self.page.keyboard.press("Control+c")
        self.page.wait_for_function("() => document.getElementById('incoming').value")
        self.page.keyboard.press("ArrowRight")
        self.until_ink(before - INK_OF_CARET)
        return self.page.input_value("#incoming")


def submit_token(page: Page, token: str) -> None:
    """Sign in by the form of the page that is open."""
    page.fill("#token", token)
    page.click("button[type=submit]")


@contextmanager
def person(playwright: Playwright, api: Api) -> Iterator[Person]:
    """Yield the user at a browser of their own. Its console must have reported no error."""
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
    try:
        context = browser.new_context(viewport=SCREEN)
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(KEEP_STATES)
        page = context.new_page()
        found = Person(page, api, Console(), [])
        found.console.watch(page)
        page.on("websocket", lambda socket: found.sockets.append(socket.url))
        yield found
        assert not found.console.unexpected, found.console.unexpected
    finally:
        browser.close()
