"""A whole login, as a user does it with the page and the VM's screen.

The provider is a real one, beside the lab. The tool is the tests' own, in a golden image of its
own. What the VM asks of the provider goes through the walls of a deployed host.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from playwright.sync_api import Browser, Page
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from polydev.image.build import BuildOptions, build
from polydev.image.recipe import load_recipe
from polydev.image.store import ImageStore
from polydev.lab import run_inside
from polydev.lab.container import init_pid
from polydev.progress import Steps
from polydev.settings import Settings
from tests.guest_screen import (
    ATTEMPT_MS,
    COLOUR_COVERS,
    SCREEN,
    SESSION_CANVAS,
    Colour,
    wait_for_colour,
)
from tests.hosts import DeployedHost
from tests.images import said_to_be_verified
from tests.oidc.beyond_lab import ProviderBeyondLab, provider_beyond
from tests.oidc.provider import ACCOUNTS, oidc_packages
from tests.people import Console, submit_token
from tests.quickvm import install_quick_image
from tests.sessions import PATIENCE_SECONDS, Operated, operated

RECIPE = Path(__file__).parents[1] / "oidc" / "recipe.yaml"
LOGIN: Colour = (0x20, 0x50, 0x80)
CONSENT: Colour = (0x50, 0x80, 0x20)
# The first field of the provider's page, in pixels of the guest's screen.
NAME_FIELD = (180, 176)
# The guest's browser shares its screen with the terminal of the login.
SHARE = 0.3
ATTEMPTS = 3
USER = "ada"

# Notes what the page says, which on a busy machine may be over before the test looks: the session
# is completed some seconds after the credentials were handed over.
NOTE_LOGIN = """() => {
    window.noted = [];
    const button = document.querySelector('#login-button');
    const completes = document.querySelector('#login-completes');
    const note = () => noted.push({
        state: button.dataset.state,
        completes: !completes.hidden && completes.textContent.includes(
            'The session will be completed in'),
    });
    const observer = new MutationObserver(note);
    for (const each of [button, completes])
        observer.observe(each, {attributes: true, childList: true, subtree: true});
}"""

# Finds the files of a host, and the output of its commands, that contain one of the texts.
SEARCH = """
import json, os, subprocess, sys
asked = json.load(sys.stdin)
texts = {name: text.encode() for name, text in asked["texts"].items()}
most = max(map(len, texts.values()))
found = {name: [] for name in texts}
def look(place, file):
    last, seen = b"", set()
    while chunk := file.read(1 << 24):
        window = last + chunk
        seen |= {name for name, text in texts.items() if text in window}
        last = window[-most:]
    for name in seen:
        found[name].append(place)
for folder, folders, names in os.walk("/"):
    folders[:] = [each for each in folders if os.path.join(folder, each) not in asked["leave"]]
    for path in (os.path.join(folder, name) for name in names):
        if not os.path.isfile(path) or os.path.islink(path):
            continue
        try:
            with open(path, "rb") as file:
                look(path, file)
        except FileNotFoundError:
            continue  # one of the moment
# Its files may be compressed.
subprocess.run(["journalctl", "--sync"], check=True)
argv = ["journalctl", "--all", "--output=export"]
with subprocess.Popen(argv, stdout=subprocess.PIPE) as journal:
    look("the journal", journal.stdout)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Journey:
    """The result of the login, and the former disk of the VM."""

    session: dict[str, Any]
    stored: dict[str, Any]
    disk: IO[bytes]

    @property
    def secrets(self) -> dict[str, str]:
        kept = self.stored["credentials"]
        return {name: kept[name] for name in ("access_token", "refresh_token", "id_token")}


@pytest.fixture(scope="module")
def service(deployed: DeployedHost, settings: Settings, store: ImageStore) -> Iterator[Operated]:
    """The deployed host, with the tests' tool in its golden image."""
    record = build(load_recipe(RECIPE), settings, store, Steps(), BuildOptions()).record
    store.write_record(said_to_be_verified(record))
    install_quick_image(deployed, store.path(record.digest))
    with operated(deployed) as found:
        yield found
        for session in found.admin.call("GET", "/api/auth/sessions?live=true")["sessions"]:
            found.admin.end(session["id"])
        found.wait_until_nothing_held()
    deployed.deploy()  # the golden image too


@pytest.fixture(scope="module")
def provider(
    service: Operated, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProviderBeyondLab]:
    packages = oidc_packages(settings.cache, Steps())
    with provider_beyond(service.host.lab, packages, tmp_path_factory.mktemp("oidc")) as found:
        yield found


@pytest.fixture(scope="module")
def page(browser: Browser, service: Operated) -> Iterator[Page]:
    """The start page, signed in; anything in the console of a page fails."""
    context = browser.new_context(viewport=SCREEN)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_SECONDS * 1000)  # VMs boot meanwhile
    console = Console()
    console.watch(page)
    page.goto(f"{service.user.http.base_url}/login")
    submit_token(page, service.user.token)
    page.wait_for_selector("#providers")
    yield page
    context.close()
    assert console.unexpected == []


def focus_first_field(page: Page) -> None:
    """Click the first field on the guest's screen, which the page scales down."""
    canvas = page.locator(SESSION_CANVAS)
    box = canvas.bounding_box()
    assert box
    scale = box["width"] / SCREEN["width"]
    canvas.click(position={"x": NAME_FIELD[0] * scale, "y": NAME_FIELD[1] * scale})


def log_in_on_screen(page: Page) -> None:
    """Log in by keyboard as a person who looks at the screen, and retry steps without effect.

    From field to field it goes by keys: a slow guest may take those that follow a click before it.
    """
    wait_for_colour(page, LOGIN, share=SHARE)
    for attempt in range(1, ATTEMPTS + 1):
        focus_first_field(page)
        for text, key in ((USER, "Tab"), (ACCOUNTS[USER], "Enter")):
            page.keyboard.press("Control+a")
            page.keyboard.type(text)
            page.keyboard.press(key)
        try:
            wait_for_colour(page, CONSENT, ATTEMPT_MS, share=SHARE)
        except PlaywrightTimeout:
            if attempt < ATTEMPTS and page.evaluate(COLOUR_COVERS, [SESSION_CANVAS, LOGIN, SHARE]):
                continue
            # The keys have arrived, and the next page takes its time.
            wait_for_colour(page, CONSENT, share=SHARE)
        break
    page.keyboard.press("Enter")  # the button that allows it has the focus


@pytest.fixture(scope="module")
def journey(
    page: Page,
    service: Operated,
    provider: ProviderBeyondLab,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Journey]:
    """Log in as a person does, and wait for the end of the session."""
    assert provider.issuer
    page.click("[data-start=testtool]")
    page.wait_for_url("**/session/*")
    session_id = page.url.rpartition("/")[2]
    page.wait_for_selector("#cover", state="hidden")
    page.click("#login-button")
    page.click("#login-start-button")
    page.wait_for_selector("#login-button[data-state=waiting]")
    page.keyboard.press("Escape")  # closes the panel, which is over the screen
    with ExitStack() as stack:
        disk = stack.enter_context(disk_of(service, session_id))
        page.evaluate(NOTE_LOGIN)
        log_in_on_screen(page)
        page.wait_for_function("() => noted.some(each => each.state === 'handed_over')")
        assert "stored them, encrypted" in page.inner_text("#login-receipt")
        assert page.evaluate("() => noted.some(each => each.completes)")
        page.screenshot(path=tmp_path_factory.mktemp("shown") / "handed-over.png")
        page.wait_for_selector("#cover[data-kind=over]")
        assert "The session is complete" in page.inner_text("#cover")
        stored = service.user.call("GET", "/api/auth/credentials/testtool")
        yield Journey(service.user.session(session_id), stored, disk)


def disk_of(service: Operated, session_id: str) -> IO[bytes]:
    """Open the file of a VM's disk, to read it after it was deleted."""
    vm, init = service.user.vm(session_id), init_pid(service.host.lab)
    folder = f"/var/lib/microvm/{vm['slot']}"
    (path,) = service.host.inside(f"find {folder} -name '*.qcow2'").splitlines()
    return Path(f"/proc/{init}/root{path}").open("rb")


def test_login_completes_session_and_ends_its_vm(service: Operated, journey: Journey) -> None:
    session = journey.session
    assert (session["status"], session["reason"]) == ("completed", None)
    receipt = session["credentialsReceipt"]
    assert (receipt["provider"], receipt["recipient"]) == ("testtool", None)
    service.wait_until_nothing_held()
    service.user.call("GET", f"/api/auth/session/{session['id']}/vm", status=410)


def test_owner_can_use_stored_credentials_at_provider(
    provider: ProviderBeyondLab, journey: Journey
) -> None:
    assert journey.stored["credentials"]["issuer"] == provider.issuer
    said = provider.userinfo(journey.secrets["access_token"])
    assert said == {"sub": USER, "name": USER}


def test_other_users_cannot_get_stored_credentials(service: Operated, journey: Journey) -> None:
    assert journey.stored["sessionId"] == journey.session["id"]
    other = service.another_user()
    for caller in (other, service.admin):
        caller.call("GET", "/api/auth/credentials/testtool", status=404)


def test_credentials_are_in_no_file_on_the_host(service: Operated, journey: Journey) -> None:
    """The session's id, which is in every place, proves that each place is searched."""
    service.wait_until_nothing_held()
    service.host.deploy()  # with a backup of what was before
    texts = {**journey.secrets, "session": journey.session["id"]}
    asked = {"texts": texts, "leave": ["/proc", "/sys", "/run/netns"]}
    argv = ["python3", "-c", SEARCH]
    said = run_inside(service.host.lab, argv, input=json.dumps(asked)).stdout
    found: dict[str, list[str]] = json.loads(said)
    places = " ".join(found.pop("session"))
    for place in ("/var/lib/master-controller/", "backups/", "the journal"):
        assert place in places
    assert found == {name: [] for name in journey.secrets}
    metrics = service.admin.http.get("/metrics", headers=service.admin.headers)
    assert metrics.status_code == 200
    assert not [name for name, text in journey.secrets.items() if text in metrics.text]


def test_credentials_were_never_on_the_vm_disk(journey: Journey) -> None:
    written = journey.disk.read()
    assert written.startswith(b"QFI\xfb")
    assert len(written) > 1 << 18, "it has no more than its own tables"
    assert [name for name, text in journey.secrets.items() if text.encode() in written] == []
