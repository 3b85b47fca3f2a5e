"""Pages in a real Chromium: a browser, its users' pages, and what is visible on them.

    async with sites(tmp_path, packed_assets) as site, page_of(site.browser) as page:
        session = await site.session()
        await sign_in(page, site)
        await page.goto(site.page_url(session))
        await until_shown(page)

A page whose console tells of an error fails its test, and so does a request that failed.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
)
from playwright.async_api import (
    Error as PlaywrightError,
)

from polydev.controller.auth.cookies import PLAIN_NAME
from polydev.controller.entities import Session
from tests.browser import chromium, run_in_browser
from tests.relays import HOST, Screens, screens
from tests.xscreen import XScreen, x_screens

PATIENCE_MS = 60_000
CANVAS = "#screen canvas"
# Chromium ends its requests when an interface of the machine comes or goes, as labs make them.
NETWORK_CHANGED = "net::ERR_NETWORK_CHANGED"
# htmx reports these beside its own errors, or where an answer takes 15 s. The page asks again.
OF_HTMX = ("htmx:afterRequest", "htmx:timeout")
# A browser's console messages about refused requests and broken connections.
NETWORK = re.compile(
    r"Failed to load resource|WebSocket connection to .* failed|net::ERR_|frame-ancestors"
)

# Pauses of scripts are over after a fiftieth of their time. After `holdPauses()` long ones wait for
# `endPauses()`, which holds the next ones, or `releasePauses()`: a state between two attempts stays
# until the test has seen it.
QUICK_TIMERS = """
const wait = window.setTimeout;
const cancel = window.clearTimeout;
let held = null;
let due = new Map();
let lastHeld = 1_000_000;
window.setTimeout = (work, pause, ...rest) => {
    if (held === null || !(pause >= 500)) return wait(work, pause / 50, ...rest);
    lastHeld += 1;
    held.set(lastHeld, () => work(...rest));
    return lastHeld;
};
window.clearTimeout = (id) => {
    held?.delete(id);
    due.delete(id);
    cancel(id);
};
const end = (next) => {
    due = held;
    held = next;
    for (const work of due.values()) work();
};
window.holdPauses = () => { held = new Map(); };
window.endPauses = () => end(new Map());
window.releasePauses = () => end(null);
"""

# Keeps all messages of a session's page, which are gone after some seconds.
KEEP_MESSAGES = """
window.messages = [];
document.addEventListener("DOMContentLoaded", () => {
    const place = document.getElementById("status-text");
    if (place === null) return;
    const keep = () => window.messages.push(place.textContent);
    new MutationObserver(keep).observe(place, {childList: true, characterData: true});
});
"""

PIXELS = """selector => {
    const canvas = document.querySelector(selector);
    if (!canvas || !canvas.width) return '';
    return canvas.toDataURL();
}"""

# While axe looks, which takes many turns of the page, lists that update themselves stay.
AXE = """async () => {
    const stay = event => { event.detail.shouldSwap = false; };
    document.addEventListener("htmx:beforeSwap", stay);
    try {
        return await axe.run(document, {resultTypes: ["violations"]});
    } finally {
        document.removeEventListener("htmx:beforeSwap", stay);
    }
}"""

Play = Callable[..., None]


class PageErrors:
    """The errors of a page's console and requests; see `page_of`."""

    def __init__(self, expects_network_errors: bool) -> None:
        self.expects_network_errors = expects_network_errors
        self.errors: list[str] = []

    def watch(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
        page.on("requestfailed", self._request_failed)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type != "error":
            return
        if self.expects_network_errors and NETWORK.search(message.text):
            return
        if is_of_the_machine(message.text):
            return
        self.errors.append(f"{message.text} ({message.location.get('url')})")

    def _request_failed(self, request: Request) -> None:
        failure = request.failure or ""
        # A page that is left, and a stream that it ends, are no failures.
        if self.expects_network_errors or "ERR_ABORTED" in failure or is_of_the_machine(failure):
            return
        self.errors.append(f"{request.method} {request.url}: {failure}")


def is_of_the_machine(error: str) -> bool:
    """Whether a console error is none of the page: its machine is busy, or changes its network."""
    return NETWORK_CHANGED in error or error.startswith(OF_HTMX)


@asynccontextmanager
async def page_of(
    browser: Browser, *, expects_network_errors: bool = False, **context: Any
) -> AsyncIterator[Page]:
    """A page in a new browser context; `context` are Playwright's options.

    Raises AssertionError at the end if the console reported an error.

    expects_network_errors   ignore network errors: the test cuts the network or causes a refusal
    """
    given = {"viewport": {"width": 1280, "height": 800}, **context}
    made: BrowserContext = await browser.new_context(**given)
    made.set_default_timeout(PATIENCE_MS)
    await made.add_init_script(KEEP_MESSAGES)
    told = PageErrors(expects_network_errors)
    try:
        page = await made.new_page()
        told.watch(page)
        try:
            yield page
        except PlaywrightError as error:
            shown = await page.inner_text("body")
            raise AssertionError(
                f"{error.message}\n{page.url} shows:\n{shown}\nconsole: {told.errors}"
            ) from error
        await page.close()
    finally:
        await made.close()
    assert not told.errors, told.errors


@dataclass
class Site:
    """The application, a real screen for its VMs, and the browser of its users."""

    made: Screens
    screen: XScreen
    browser: Browser

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.made.port}"

    async def session(self, **words: Any) -> Session:
        """Make a session of the user, whose VM is ready and shows the screen."""
        return await self.made.session(self.screen, **words)

    def page_url(self, session: Session) -> str:
        return f"{self.url}/session/{session.id}"

    def notify_followers(self) -> None:
        """Notify followers of sessions of news, as a driver would."""
        self.made.services.event_notifier.notify()


@asynccontextmanager
async def sites(root: Path, packed_assets: Path, **changes: Any) -> AsyncIterator[Site]:
    """Run the application with a screen and a browser; `changes` are those of `screens`."""
    for name in ("host", "screen"):
        (root / name).mkdir()
    async with AsyncExitStack() as stack:
        serving = screens(root / "host", packed_assets=packed_assets, **changes)
        made = await stack.enter_async_context(serving)
        screen = await stack.enter_async_context(x_screens(root / "screen"))
        yield Site(made, screen, await stack.enter_async_context(chromium()))


async def sign_in(page: Page, site: Site, caller: str = "user", url: str | None = None) -> None:
    """Sign in by the page, as a person does; `url` is the site's as this browser sees it."""
    await page.goto(f"{url or site.url}/login")
    await page.fill("#token", site.made.tokens[caller])
    await page.click("button[type=submit]")
    await page.wait_for_url(f"{url or site.url}/")
    assert PLAIN_NAME in [cookie["name"] for cookie in await page.context.cookies()]


async def open_session(page: Page, site: Site, session: Session, url: str | None = None) -> None:
    """Sign in, and open the session's page; `url` is the site's as this browser sees it."""
    await sign_in(page, site, url=url)
    await page.goto(f"{url or site.url}/session/{session.id}")


async def until_shown(page: Page) -> None:
    """Wait until the VM's screen is seen on a session's page."""
    await page.wait_for_selector("#cover", state="hidden")
    drawn = f"selector => ({PIXELS})(selector) !== ''"
    await page.wait_for_function(drawn, arg=CANVAS, timeout=PATIENCE_MS)


async def until_covered(page: Page, kind: str, *texts: str) -> None:
    """Wait until a session's page shows a card of this kind that says all of these texts.

    Playwright looks twice a second at most, so the card has to stay: see `QUICK_TIMERS`.
    """
    said = "".join(f":has-text({text!r})" for text in texts)
    await page.wait_for_selector(f"#cover[data-kind={kind}]:not([hidden]) article{said}")


async def until_text(page: Page, text: str) -> None:
    """Wait until the card of a session's page says that."""
    await page.wait_for_selector(f"#cover article:has-text({text!r})")


async def until_message(page: Page, text: str) -> None:
    """Wait until a session's page has said that in place of its status, be it gone by now."""
    said = "text => window.messages.some(each => each.includes(text))"
    await page.wait_for_function(said, arg=text)


async def picture(page: Page) -> str:
    """Return the VM's screen as the page shows it, in a form that can be compared."""
    shown: str = await page.evaluate(PIXELS, CANVAS)
    return shown


async def until_other_picture(page: Page, before: str) -> None:
    changed = f"([selector, before]) => ({PIXELS})(selector) !== before"
    await page.wait_for_function(changed, arg=[CANVAS, before], polling=100, timeout=PATIENCE_MS)


async def violations(page: Page, node_modules: Path, *, ignored: Sequence[str] = ()) -> list[str]:
    """Return the problems that axe-core finds on the present page."""
    # A page's policy forbids scripts of others; a debugger's are none of the page.
    source = (node_modules / "axe-core/axe.min.js").read_text()
    await page.evaluate(source)
    found = await page.evaluate(AXE)
    return [
        f"{each['id']}: {node['html']} {node['failureSummary']}"
        for each in found["violations"]
        if each["id"] not in ignored
        for node in each["nodes"]
    ]


def player(root: Path, packed_assets: Path) -> Play:
    """Return a function that runs a scenario on its own site; `changes` are those of `screens`."""

    async def played(scenario: Callable[[Site], Awaitable[None]], **changes: Any) -> None:
        async with sites(root, packed_assets, **changes) as site:
            await scenario(site)

    return lambda scenario, **changes: run_in_browser(played(scenario, **changes))
