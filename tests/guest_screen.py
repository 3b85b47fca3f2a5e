"""Read a guest's screen from the canvas of a page in a web browser."""

from __future__ import annotations

from playwright.sync_api import Page, ViewportSize

# The guest's own screen has this size too, so its pixels are those of the page.
SCREEN: ViewportSize = {"width": 1280, "height": 800}
SESSION_CANVAS = "#screen canvas"
# A login's terminal has a fifth of the screen, and the bars of the browser a tenth.
MOST = 0.6
# Until a guest without KVM and on a busy machine counts as dead.
PATIENCE_MS = 600_000
# Until keys that have no effect there count as lost.
ATTEMPT_MS = 60_000

Colour = tuple[int, int, int]

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
