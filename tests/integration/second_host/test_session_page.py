"""A session's page on a deployed host, used as by a person while everything around it breaks.

The VMs are clones of the golden image, from the pool. What the page shows is compared with the API.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import Playwright, sync_playwright

from polydev.lab import run_inside
from tests.guest_screen import SESSION_CANVAS, START_PAGE, TEAL, wait_for_colour
from tests.hosts import DeployedHost
from tests.people import INK_OF_CARET, INK_OF_WORDS, Person, person
from tests.pooled_host import POOLED
from tests.sessions import Operated, operated, primed, wait_for

PASTED = "Grüße-aus-der-Zwischenablage."
WRITTEN = f"typed.{PASTED}reloaded.silence.mended.restarted.killed."
CUT_SECONDS = 5
# A session's end is announced when half of this time is left.
IDLE_SECONDS = 90
DROP_IN = "/run/systemd/system/master-controller.service.d"
UNLESS_USED = f"[Service]\nEnvironment=POLYDEV_CONTROLLER_SESSION__IDLE_SECONDS={IDLE_SECONDS}\n"
# A network that loses all packets between viewers and the controller. Who is on the host itself
# can still ask.
SILENT = """
table inet cut {
    chain input { type filter hook input priority -300; iifname != "lo" tcp dport 4000 drop; }
    chain output { type filter hook output priority -300; oifname != "lo" tcp sport 4000 drop; }
}
"""
# A network that ends connections, as a router does that has restarted.
BROKEN = """
table inet cut {
    chain input {
        type filter hook input priority -300
        iifname != "lo" tcp dport 4000 reject with tcp reset
    }
}
"""
# A browser reports these errors if a connection is cut or its other end is killed. No page can
# suppress them.
CUT_ERRORS = (
    r"^WebSocket connection to 'ws://.*' failed: ",
    r"^Failed to load resource: net::ERR_CONNECTION_(RESET|REFUSED) ",
    r"^Failed to load resource: net::ERR_INCOMPLETE_CHUNKED_ENCODING .*/events\)$",
)
ASK = """
import sys, urllib.request
headers = {"Authorization": f"Bearer {sys.argv[2]}"}
asked = urllib.request.Request(f"http://127.0.0.1:4000{sys.argv[1]}", headers=headers)
print(urllib.request.urlopen(asked).read().decode())
"""


@contextmanager
def cut(host: DeployedHost, rules: str) -> Iterator[None]:
    """Cut the network between this machine's browsers and the controller."""
    run_inside(host.lab, ["nft", "-f", "-"], input=rules)
    try:
        yield
    finally:
        host.inside("nft delete table inet cut")


@contextmanager
def sessions_expire_soon(host: DeployedHost) -> Iterator[None]:
    """Let the controller have a short idle time for the block."""
    restart = "systemctl daemon-reload; systemctl restart master-controller"
    host.inside(f"mkdir -p {DROP_IN}; printf %s {shlex.quote(UNLESS_USED)} >{DROP_IN}/idle.conf")
    try:
        host.inside(restart)
        yield
    finally:
        host.inside(f"rm -r {DROP_IN}; {restart}")


def asked_inside(service: Operated, user: Person, session_id: str) -> dict[str, Any]:
    """Return a session as the API has it, asked on the host itself."""
    path = f"/api/auth/session/{session_id}"
    said = service.host.inside(shlex.join(["python3", "-c", ASK, path, user.api.token]))
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.fixture(scope="module")
def service(pooled: DeployedHost) -> Iterator[Operated]:
    with sessions_expire_soon(pooled), operated(pooled) as found:
        yield found
        for session in found.admin.call("GET", "/api/auth/sessions?live=true")["sessions"]:
            found.admin.end(session["id"])
            found.wait_until_released(session["vmId"])


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as found:
        yield found


def test_session_page_tells_the_truth_whatever_happens(
    service: Operated, playwright: Playwright
) -> None:
    primed(service, POOLED)
    with person(playwright, service.user) as ada:
        start(ada, "claude")
        with person(playwright, service.another_user()) as bob:
            start(bob, "codex")
            type_into_the_vm(ada)
            see_nothing_of_each_other(ada, bob)
            end_session(bob)
        paste_and_copy(ada)
        reload(ada)
        lose_packets(service, ada)
        lose_connections(service, ada)
        restart_controller(service, ada)
        kill_controller(service, ada)
        lose_vm_and_start_again(service, ada)
        keep_session_and_let_it_expire(service, ada)
        ada.page.click("text=To your sessions")
        ada.page.wait_for_selector("#sessions .row")
        ada.check_start_page()


def start(user: Person, provider: str) -> None:
    """Sign in, start a session, and see the start page of the VM's browser."""
    user.sign_in()
    user.check_start_page()
    user.start(provider)
    user.until_shown()
    session = user.check("screen")
    assert (session["userId"], session["provider"]) == (user.api.user_id, provider)
    assert session["boot"]["template"], "a clone"
    wait_for_colour(user.page, START_PAGE)


def type_into_the_vm(user: Person) -> None:
    user.open_paper("teal", TEAL)
    user.write("typed.")
    assert user.written() == "typed."
    user.check("screen")


def see_nothing_of_each_other(ada: Person, bob: Person) -> None:
    wait_for_colour(bob.page, START_PAGE)
    wait_for_colour(ada.page, TEAL)
    assert ada.api.session(ada.session_id)["vmId"] != bob.api.session(bob.session_id)["vmId"]
    for user, other in ((ada, bob), (bob, ada)):
        own, others = user.page.url, other.page.url
        with user.expects(rf"status of 403 .*\({others}\)$"):
            user.page.goto(others)
            assert "another user" in user.page.inner_text("main")
        assert user.page.locator("canvas").count() == 0
        user.page.goto(user.url("/"))
        user.check_start_page()
        seen = user.page.content()
        for word in (other.api.user_id, others.rpartition("/")[2]):
            assert word not in seen
        user.page.goto(own)
        user.until_shown()
        user.check("screen")


def end_session(user: Person) -> None:
    user.page.click("#end-button")
    user.page.click("dialog >> text=End session")
    user.until_covered("over", "The session was ended")
    user.check("over")


def paste_and_copy(user: Person) -> None:
    """Paste a text of the user's clipboard by Ctrl+V, and take one of the VM to it."""
    page = user.page
    page.click("#clipboard-button")
    page.fill("#outgoing", PASTED)
    page.press("#outgoing", "Control+a")
    page.press("#outgoing", "Control+c")
    page.press("#outgoing", "Escape")
    before = user.ink()
    page.locator(SESSION_CANVAS).focus()
    page.keyboard.press("Control+v")
    user.until_ink(before + INK_OF_WORDS)
    assert user.written() == f"typed.{PASTED}"
    page.click("#clipboard-button")
    page.click("#take-button")
    page.keyboard.press("Control+c")
    page.press("#outgoing", "Control+a")
    page.press("#outgoing", "Control+v")
    assert page.input_value("#outgoing") == f"typed.{PASTED}"
    page.press("#outgoing", "Escape")


def reload(user: Person) -> None:
    before, written = user.check("screen"), user.ink()
    user.page.reload()
    user.until_shown()
    assert user.check("screen")["vmId"] == before["vmId"]
    wait_for_colour(user.page, TEAL)
    user.until_ink(written - INK_OF_CARET, most=written + INK_OF_CARET)
    user.write("reloaded.")


def lose_packets(service: Operated, user: Person) -> None:
    """Nothing is lost in a network that is silent for a moment, and nobody need notice."""
    states, sockets = user.states(), len(user.sockets)
    with cut(service.host, SILENT):
        written = user.ink()
        user.begin_to_write("silence.")
        user.page.wait_for_timeout(CUT_SECONDS * 1000)
        assert user.ink() < written + INK_OF_WORDS
        user.check("screen", partial(asked_inside, service, user))
    user.until_ink(written + INK_OF_WORDS)
    user.check("screen")
    assert (user.states(), len(user.sockets)) == (states, sockets)


def lose_connections(service: Operated, user: Person) -> None:
    """The page says that it was cut, and tries again until the network is back."""
    vm = user.api.vm(user.session_id)
    with user.expects(*CUT_ERRORS):
        with cut(service.host, BROKEN):
            user.page.keyboard.press("Shift")
            # The fourth attempt is 7 s after the cut.
            user.until_covered("lost", "The controller does not answer", "(3 of 5)")
            user.check("lost", partial(asked_inside, service, user))
        user.until_shown()
    assert user.check("screen")["vmId"] == vm["vmId"]
    user.write("mended.")


def restart_controller(service: Operated, user: Person) -> None:
    """The VM goes on, and no request fails: the console reports nothing."""
    vm = user.api.vm(user.session_id)
    pid = main_pid(service, vm)
    user.forget_states()
    service.host.inside("systemctl restart master-controller")
    user.until_shown_again("The service restarts; connect again.")
    assert user.check("screen")["vmId"] == vm["vmId"]
    assert main_pid(service, vm) == pid
    user.write("restarted.")


def main_pid(service: Operated, vm: dict[str, Any]) -> str:
    return service.host.inside(f"systemctl show -P MainPID microvm@{vm['slot']}.service")


def kill_controller(service: Operated, user: Person) -> None:
    vm = user.api.vm(user.session_id)
    user.forget_states()
    with user.expects(*CUT_ERRORS):
        service.kill_controller()
        user.until_shown_again("The connection to the controller broke off. Check your network.")
    assert user.check("screen")["vmId"] == vm["vmId"]
    user.write("killed.")
    # All that was typed meanwhile came, and came once.
    assert user.written() == WRITTEN


def lose_vm_and_start_again(service: Operated, user: Person) -> None:
    lost = user.session_id
    unit = f"microvm@{user.api.vm(lost)['slot']}.service"
    service.host.inside(f"systemctl kill --kill-who=main --signal=KILL {unit}")
    user.until_covered("over", "The VM failed", "signal")
    session = user.check("over")
    assert session["status"] == "failed"
    user.page.click("text=Start a new session")
    user.page.wait_for_url(lambda url: "/session/" in url and lost not in url)
    user.until_shown()
    again = user.check("screen")
    for name in ("userId", "provider"):
        assert again[name] == session[name]
    assert again["vmId"] != session["vmId"]
    wait_for_colour(user.page, START_PAGE)


def keep_session_and_let_it_expire(service: Operated, user: Person) -> None:
    """A page that has given up on its network warns before the end, and "Stay" puts that off."""
    with user.expects(*CUT_ERRORS):
        with cut(service.host, BROKEN):
            user.page.keyboard.press("Shift")
            user.until_covered("given-up", "has stopped trying")
            user.check("given-up", partial(asked_inside, service, user))
        user.page.wait_for_selector("#countdown:has-text('seems unused')")
    warned = user.check("given-up")
    user.page.click("#stay-button")
    user.page.wait_for_selector("#countdown", state="hidden")
    assert user.check("given-up")["expiresAt"] > warned["expiresAt"]
    user.page.wait_for_selector("#countdown:has-text('seems unused')")
    user.until_covered("over", "The session has expired")
    session = user.check("over")
    assert session["reason"] == f"no viewer and no heartbeat for {IDLE_SECONDS} s"
    wait_for("the end of its VM", lambda: vm_is_released(service, session))


def vm_is_released(service: Operated, session: dict[str, Any]) -> bool:
    return bool(service.admin.call("GET", f"/api/vm/{session['vmId']}")["releasedAt"])
