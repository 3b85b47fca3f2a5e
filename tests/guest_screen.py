"""Read a guest's screen from the canvas of a page in a web browser, and type there."""

from __future__ import annotations

from playwright.sync_api import Page, Position, ViewportSize
from playwright.sync_api import TimeoutError as PlaywrightTimeout

# The guest's own screen has this size too, so its pixels are those of the page.
SCREEN: ViewportSize = {"width": 1280, "height": 800}
SESSION_CANVAS = "#screen canvas"
# A login's terminal has a fifth of the screen, and the bars of the browser a tenth.
MOST = 0.6
# Until a guest without KVM and on a busy machine counts as dead.
PATIENCE_MS = 600_000
# Until keys that have no effect there count as lost.
ATTEMPT_MS = 60_000
TYPING_ATTEMPTS = 3
# The address bar of the guest's browser, on its screen of the same size.
ADDRESS_BAR: Position = {"x": 640, "y": 63}
# The light strip above its tabs.
TAB_STRIP = (900, 20)

Colour = tuple[int, int, int]
START_PAGE, TEAL, PURPLE = (0x16, 0x32, 0x4F), (0, 128, 128), (128, 0, 128)

COLOUR_COVERS = """([selector, [red, green, blue], share]) => {
    const canvas = document.querySelector(selector);
    if (!canvas || !canvas.width) return false;
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const near = (at, wanted) => Math.abs(data[at] - wanted) <= 3;
    let found = 0;
    for (let at = 0; at < data.length; at += 4)
        if (near(at, red) && near(at + 1, green) && near(at + 2, blue)) found++;
    return found >= share * data.length / 4;
}"""

IS_LIGHT = """([selector, [x, y]]) => {
    const context = document.querySelector(selector).getContext('2d');
    return Math.min(...context.getImageData(x, y, 1, 1).data) > 200;
}"""


def wait_for_colour(
    page: Page,
    colour: Colour,
    patience_ms: float = PATIENCE_MS,
    *,
    canvas: str = SESSION_CANVAS,
    share: float = MOST,
) -> None:
    """Wait until one colour covers that share of the guest's screen."""
    wanted = [canvas, colour, share]
    page.wait_for_function(COLOUR_COVERS, arg=wanted, polling=250, timeout=patience_ms)


def paint_in_guest(
    page: Page, name: str, colour: Colour, *, canvas: str = SESSION_CANVAS, more: str = ""
) -> None:
    """Open a page of this colour in the guest's browser by click and keys; retry if needed.

    more    further attributes of the page's body
    """
    for attempt in range(1, TYPING_ATTEMPTS + 1):
        page.locator(canvas).click(position=ADDRESS_BAR)
        page.keyboard.type(f"data:text/html,<body bgcolor={name}{more}>")
        page.keyboard.press("Enter")
        is_last = attempt == TYPING_ATTEMPTS
        try:
            wait_for_colour(page, colour, PATIENCE_MS if is_last else ATTEMPT_MS, canvas=canvas)
        except PlaywrightTimeout:
            if is_last:
                raise
        else:
            break
