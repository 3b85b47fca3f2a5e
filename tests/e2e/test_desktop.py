"""The main job of a user: ./inv up, the desktop in a web browser, the end of the VM.

The browser is a real Chromium; all that it knows of the guest is the picture in noVNC's canvas
and the keys and clicks that go into it. POLYDEV_E2E_SCREENSHOT names a file for a screenshot.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page

from polydev import http_client
from polydev.deployment.pyinfra_process import Project
from polydev.errors import VmTimeout
from polydev.http_client import HttpSession
from polydev.lab import find as find_lab
from polydev.local_vm import LocalVm, find
from polydev.processes import LineProcess
from polydev.vm.health import agent_health
from polydev.vm.template import monitor
from tests.guest_screen import (
    ADDRESS_BAR,
    COLOUR_COVERS,
    IS_LIGHT,
    MOST,
    PATIENCE_MS,
    PURPLE,
    SCREEN,
    SESSION_CANVAS,
    START_PAGE,
    TEAL,
    Colour,
    paint_in_guest,
    wait_for_colour,
)
from tests.hosts import DeployedHost
from tests.inv import ROOT, Inv
from tests.people import Console, submit_token
from tests.sessions import REQUEST_SECONDS, Api, Operated, inside_vm, wait_for

# The place of the address bar's suggestions, which are white.
BELOW_ADDRESS_BAR = (640, 150)
CANVAS = "#noVNC_container canvas"
# Before that noVNC has a canvas too, but loses what is typed.
CONNECTED = f":root.noVNC_connected {CANVAS}"
# noVNC's own bars, which cover the guest's screen for the first seconds.
NOVNC_BARS = "#noVNC_status.noVNC_open, #noVNC_control_bar.noVNC_open"
# A line of the shell that runs the README's lines.
WAITS = "the README's session waits for its end:"


def wait_until_gone(page: Page, colour: Colour) -> None:
    """Wait until the screen does not show this colour any more."""
    gone = f"words => !({COLOUR_COVERS})(words)"
    wanted = [SESSION_CANVAS, colour, MOST]
    page.wait_for_function(gone, arg=wanted, polling=250, timeout=PATIENCE_MS)


def paste_in_guest(page: Page, name: str, colour: Colour) -> None:
    """Send a text to the guest's clipboard by the session's page, and paste it there."""
    page.click("#clipboard-button")
    page.fill("#outgoing", f"data:text/html,<body bgcolor={name}>")
    page.click("#send-button")
    page.locator(SESSION_CANVAS).click(position=ADDRESS_BAR)
    page.keyboard.press("Control+l")
    page.keyboard.press("Control+v")
    # The guest's browser asks for the text, and takes keys before it has got it.
    wanted = [SESSION_CANVAS, BELOW_ADDRESS_BAR]
    page.wait_for_function(IS_LIGHT, arg=wanted, polling=250, timeout=PATIENCE_MS)
    page.keyboard.press("Enter")
    wait_for_colour(page, colour, canvas=SESSION_CANVAS)


def copied_in_guest(page: Page) -> str:
    """Copy the address in the guest's browser, and return what comes to the session's page."""
    page.locator(SESSION_CANVAS).click(position=ADDRESS_BAR)
    page.keyboard.press("Control+l")
    page.keyboard.press("Control+c")
    came = "() => document.querySelector('#incoming').value"
    page.wait_for_function(came, timeout=PATIENCE_MS)
    return page.input_value("#incoming")


@pytest.fixture(scope="module")
def inv(main_inv: Inv) -> Inv:
    return main_inv


@pytest.fixture
def viewer(browser: Browser, up: dict[str, Any]) -> Iterator[Page]:
    """The viewer's page, connected; an error in its scripts fails the test."""
    context = browser.new_context(viewport=SCREEN)
    context.set_default_timeout(PATIENCE_MS)  # the guest itself serves the page
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(up["viewer"])
    page.wait_for_selector(CONNECTED, timeout=PATIENCE_MS)
    yield page
    context.close()
    assert errors == []


def test_up_shows_the_guests_browser_in_a_web_browser(
    up: dict[str, Any], viewer: Page, tmp_path: Path
) -> None:
    assert (up["built"], up["promoted"], up["started"]) == (True, True, True)
    wait_for_colour(viewer, START_PAGE, canvas=CANVAS)
    viewer.wait_for_selector(NOVNC_BARS, state="detached")
    picture = Path(os.environ.get("POLYDEV_E2E_SCREENSHOT", tmp_path / "desktop.png"))
    viewer.screenshot(path=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_keys_and_clicks_reach_the_guest(viewer: Page) -> None:
    paint_in_guest(viewer, "teal", TEAL, canvas=CANVAS)


def test_desktop_survives_viewer_reload(viewer: Page) -> None:
    paint_in_guest(viewer, "purple", PURPLE, canvas=CANVAS)
    viewer.reload()
    wait_for_colour(viewer, PURPLE, canvas=CANVAS)


def test_two_viewers_see_the_same_desktop(up: dict[str, Any], viewer: Page) -> None:
    second = viewer.context.new_page()
    second.goto(up["viewer"])
    second.wait_for_selector(CONNECTED, timeout=PATIENCE_MS)
    paint_in_guest(second, "teal", TEAL, canvas=CANVAS)
    wait_for_colour(viewer, TEAL, canvas=CANVAS)


@pytest.fixture(scope="module")
def vm(inv: Inv, up: dict[str, Any]) -> LocalVm:
    """The VM of `up`, started as for use, not for verification."""
    found = find(inv.settings)
    assert found is not None
    return found


def test_vm_in_use_is_ready(vm: LocalVm, up: dict[str, Any]) -> None:
    def ready() -> dict[str, object] | None:
        try:
            status, body = agent_health(vm.config.ports)
        except VmTimeout:  # it gets little CPU time
            return None
        return body if (status, body.get("status")) == (200, "ready") else None

    assert wait_for("a VM that is ready", ready)["image_digest"] == up["image"]


def test_vm_in_use_has_no_test_console(vm: LocalVm) -> None:
    # In the guest: nobody asked systemd for a shell, and it started none.
    serial = vm.machine.serial()
    assert "Kernel command line:" in serial
    assert "debug_shell" not in serial
    assert "debug-shell" not in serial
    # Outside: QEMU has its own monitor, the log's serial port and that of the VM's identity.
    assert not vm.config.console_socket.exists()
    with ThreadPoolExecutor() as beside:  # Playwright's loop runs in this thread
        labels = beside.submit(asyncio.run, _device_labels(vm.config.qmp_socket)).result()
    assert labels == {"qmp", "serial0", "identity"}


async def _device_labels(qmp_socket: Path) -> set[str]:
    async with monitor(qmp_socket) as qemu:
        devices: Any = await qemu.execute("query-chardev")
    return {device["label"] for device in devices}


def test_where_prints_same_addresses_as_up(inv: Inv, up: dict[str, Any]) -> None:
    where = inv.answer("where")
    vm = ("image", "vmId", "viewer", "novnc", "vnc", "agent", "serialLog")
    addresses = (*vm, "lab", "controller", "url", "userId", "token", "dashboard")
    # The link works once, so each call makes another.
    link = where.pop("page")
    assert link.startswith(f"{up['url']}/login?next=/#code=")
    assert link != up["page"]
    assert where == {"running": True, **{name: up[name] for name in addresses}}


def test_up_deploys_host_with_built_image(up: dict[str, Any]) -> None:
    assert up["deployment"]["status"] == "succeeded"
    answer = http_client.get(f"{up['controller']}/api/auth/health")
    assert answer.status_code == 200
    report = answer.json()
    assert report["release"] == up["deployment"]["id"]
    assert report["components"]["imageStore"]["golden"] == up["image"]


@dataclass(frozen=True)
class ReadmeSession:
    """A session that the README's lines have started, and the shell that waits to end it.

    said    what the lines wrote until then
    """

    shell: LineProcess
    id: str
    said: str

    def end(self) -> str:
        """Run the last lines and return what they wrote."""
        self.shell.send("")
        return b"".join(self.shell.lines()).decode()


@pytest.fixture(scope="module")
def readme_session(inv: Inv, up: dict[str, Any]) -> Iterator[ReadmeSession]:
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    (lines,) = [block for block in blocks if "/api/auth/start" in block]
    until_end, last_lines = lines.split("# End it.")
    script = f'{until_end}\necho; echo "{WAITS} $session"; read -r _\n#{last_lines}'
    folders = [f"{name}={value}" for name, value in inv.folders.items()]
    shell = LineProcess(["env", *folders, "sh", "-eu", "-c", script], cwd=ROOT)
    try:
        said = ""
        for line in shell.lines():
            if line.startswith(WAITS.encode()):
                yield ReadmeSession(shell, line.split()[-1].decode(), said)
                return
            said += line.decode()
        pytest.fail(f"the README's lines ended early: {said}\n{shell.last_words()}")
    finally:
        shell.end()


def test_readme_session_commands_start_a_session(readme_session: ReadmeSession) -> None:
    for state in ("vm_starting", "vm_created"):
        assert state in readme_session.said
    assert '"vmIP":"192.168.100.' in readme_session.said.replace(" ", "")
    assert "polydev: ready after" in readme_session.said


@pytest.fixture(scope="module")
def service(inv: Inv, up: dict[str, Any]) -> Iterator[Operated]:
    """The deployed host; the user made by `up` is both its user and its admin."""
    lab = find_lab(up["lab"], inv.settings)
    assert lab is not None
    host = DeployedHost(lab, inv.settings, Project(ROOT, ROOT / "inventory" / "lab.py"), Path())
    with HttpSession(up["url"], REQUEST_SECONDS) as http:
        api = Api(http, up["token"], up["userId"])
        yield Operated(host, api, api)


def test_readme_session_has_its_own_vm(service: Operated, readme_session: ReadmeSession) -> None:
    user, session_id = service.user, readme_session.id
    lines = readme_session.said.splitlines()
    news = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
    stages = [each["stage"] for each in news if "stage" in each]
    assert (stages[0], stages[-1]) == ("kernel", "ready")
    vm = user.vm(session_id)
    said = inside_vm(service, vm["vmIP"])
    assert (said["session_id"], said["vm_id"]) == (session_id, vm["vmId"])
    page = f"http://{vm['vmIP']}:6080/vnc.html"
    code = f"import urllib.request as u; print(u.urlopen('{page}').status)"
    assert service.host.inside(f'python3 -c "{code}"') == "200"
    before = user.session(session_id)["expiresAt"]
    heartbeat = user.call("POST", f"/api/auth/session/{session_id}/heartbeat")
    assert heartbeat["expiresAt"] > before


@pytest.fixture
def session_page(
    browser: Browser, up: dict[str, Any], readme_session: ReadmeSession
) -> Iterator[Page]:
    """The page of that session, in the browser of its user; anything in its console fails."""
    context = browser.new_context(viewport=SCREEN)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    console = Console()
    console.watch(page)
    page.goto(f"{up['url']}/session/{readme_session.id}")
    submit_token(page, up["token"])
    page.wait_for_selector("#cover", state="hidden", timeout=PATIENCE_MS)
    yield page
    context.close()
    assert console.unexpected == []


def test_readme_session_page_shows_desktop_and_login(
    inv: Inv,
    session_page: Page,
    readme_session: ReadmeSession,
    service: Operated,
    tmp_path: Path,
) -> None:
    page, session_id = session_page, readme_session.id
    wait_for_colour(page, START_PAGE, canvas=SESSION_CANVAS)
    # The README's lines have asked for the login.
    page.wait_for_selector("#login-button[data-state=waiting]", timeout=PATIENCE_MS)
    login = inv.answer("session.login", session_id)
    assert login["status"] == "waiting"
    assert (urlsplit(login["url"]).hostname or "").endswith(("claude.ai", "claude.com"))
    wait_until_gone(page, START_PAGE)  # the URL is open in the guest's browser too
    page.screenshot(path=Path(os.environ.get("POLYDEV_E2E_LOGIN", tmp_path / "login.png")))
    assert service.user.session(session_id)["status"] == "oauth_pending"
    paint_in_guest(page, "teal", TEAL)
    page.reload()
    page.wait_for_selector("#cover", state="hidden", timeout=PATIENCE_MS)
    wait_for_colour(page, TEAL, canvas=SESSION_CANVAS)
    paste_in_guest(page, "purple", PURPLE)
    assert "bgcolor=purple" in copied_in_guest(page)
    page.screenshot(path=Path(os.environ.get("POLYDEV_E2E_SESSION", tmp_path / "session.png")))
    assert "terminated" in readme_session.end()
    page.wait_for_selector("#cover[data-kind=over]", timeout=PATIENCE_MS)
    service.user.call("GET", f"/api/auth/session/{session_id}/vm", status=410)
    service.wait_until_nothing_held()


def test_second_up_changes_nothing(inv: Inv, up: dict[str, Any]) -> None:
    machine = (inv.settings.state / "local/vm.json").read_text()
    again = inv.answer("up")
    deployment = again.pop("deployment")
    assert (deployment["status"], deployment["changes"]) == ("succeeded", 0)
    again.pop("page")  # a link that works once
    before = {name: value for name, value in up.items() if name not in ("deployment", "page")}
    assert again == {**before, "built": False, "promoted": False, "started": False}
    assert (inv.settings.state / "local/vm.json").read_text() == machine


# The last test of this file, since it ends the VM of the others.
def test_down_with_no_lab_keeps_the_lab(inv: Inv, up: dict[str, Any]) -> None:
    assert inv.answer("down", "--no-lab") == {"ended": True, "labEnded": False}
    where = inv.answer("where")
    assert (where["running"], where["lab"]) == (False, up["lab"])
    assert not (inv.settings.state / "local").exists()
    assert inv.answer("golden.show", "golden")["digest"] == up["image"]
