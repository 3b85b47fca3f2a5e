"""Sessions on a deployed host, on VMs that boot: their normal course, and past failures.

e2e/test_desktop.py has one on a VM of the golden image.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
import requests
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from inventory.group_data import lab
from tests.hosts import DeployedHost
from tests.quickvm import install_quick_image, make_quick_image
from tests.sessions import (
    FROM_HERE_ON,
    PATIENCE_SECONDS,
    Api,
    Operated,
    inside_vm,
    operated,
    wait_for,
)
from tests.viewer import open_websocket, viewer_url

pytestmark = pytest.mark.usefixtures("nothing_left")

RFB = b"RFB 003.008\n"
CYCLES = 24
KILLS = 8


@pytest.fixture(scope="module")
def service(deployed: DeployedHost) -> Iterator[Operated]:
    with operated(deployed) as found:
        yield found
        for session in found.admin.call("GET", "/api/auth/sessions?live=true")["sessions"]:
            found.admin.end(session["id"])
        found.wait_until_nothing_held()


@pytest.fixture(scope="module")
def quick(service: Operated, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    """The same host, whose VMs are the smallest that boot, and few enough to boot together."""
    golden = service.host.golden_image()
    image = make_quick_image(golden, tmp_path_factory.mktemp("quick"))
    together = {"controller": {**lab.controller, "boots_at_once": 4}}
    replace(service.host, data=together).deploy()
    install_quick_image(service.host, image)
    yield service
    service.host.deploy()  # the golden image too


def test_eight_concurrent_sessions_fill_all_slots(quick: Operated) -> None:
    users = [quick.another_user() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        started = list(pool.map(lambda user: user.start(), users))
        list(pool.map(lambda user, each: user.wait(each["id"], "vm_created"), users, started))
    vms = [user.vm(each["id"]) for user, each in zip(users, started, strict=True)]
    assert len({vm["vmIP"] for vm in vms}) == 8
    for each, vm in zip(started, vms, strict=True):
        assert inside_vm(quick, vm["vmIP"])["session_id"] == each["id"]
    # All slots are held, so the ninth start names the session that is idle for longest.
    refused = quick.another_user().start(status=503)
    assert refused["type"] == "urn:polydev:error:no-free-slot"
    assert "8 slots" in refused["detail"]
    for user, each in zip(users, started, strict=True):
        user.end(each["id"])
    quick.wait_until_nothing_held()


def test_last_slot_goes_to_one_of_two_concurrent_starts(quick: Operated) -> None:
    users = [quick.another_user() for _ in range(9)]
    held = [user.start() for user in users[:7]]

    def ask(user: Api) -> requests.Response:
        body = {"userId": user.user_id, "provider": "claude"}
        return user.http.post("/api/auth/start", json=body, headers=user.headers)

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, users[7:]))
    assert sorted(answer.status_code for answer in answers) == [201, 503]
    for user, each in zip(users, held, strict=False):
        user.end(each["id"])
    for user, answer in zip(users[7:], answers, strict=True):
        if answer.status_code == 201:
            user.end(answer.json()["id"])
    quick.wait_until_nothing_held()


def test_killed_vm_fails_its_session_with_reason(quick: Operated) -> None:
    session = quick.user.start()
    quick.user.wait(session["id"], "vm_created")
    vm = quick.user.vm(session["id"])
    quick.host.inside(f"systemctl kill --signal=KILL microvm@{vm['slot']}.service")
    ended = wait_for(
        "the end",
        lambda: found if (found := quick.user.session(session["id"]))["endedAt"] else None,
    )
    assert ended["status"] == "failed"
    assert "signal" in ended["reason"]
    assert ended["failure"]["serialTail"]
    gone = quick.user.call("GET", f"/api/auth/session/{session['id']}/vm", status=410)
    assert ended["reason"] in gone["detail"]
    quick.wait_until_nothing_held()


async def greeted(client: ClientConnection) -> None:
    assert await client.recv() == RFB


async def reconnected(url: str, token: str) -> None:
    """Reconnect a viewer until it sees its VM again."""
    async for client in open_websocket(url, token):
        with suppress(ConnectionClosed):
            await greeted(client)
            return


def test_restarted_controller_keeps_vm_and_viewer_reconnects(quick: Operated) -> None:
    session = quick.user.start()
    quick.user.wait(session["id"], "vm_created")
    vm = quick.user.vm(session["id"])
    pid = quick.host.inside("pgrep qemu-system")
    url = viewer_url(quick.user.http.base_url, session["id"])

    async def watch() -> int:
        async with open_websocket(url, quick.user.token) as client:
            await greeted(client)
            restart = asyncio.to_thread(quick.host.inside, "systemctl restart master-controller")
            told, _ = await asyncio.gather(client.wait_closed(), restart)
            assert told is None
            code = client.close_code
        await asyncio.wait_for(reconnected(url, quick.user.token), PATIENCE_SECONDS)
        return code or 0

    assert asyncio.run(watch()) == 1001
    assert {**quick.user.vm(session["id"]), "lastHeartbeat": 0} == {**vm, "lastHeartbeat": 0}
    assert quick.host.inside("pgrep qemu-system") == pid
    quick.user.end(session["id"])
    quick.wait_until_nothing_held()


def test_killed_controller_loses_no_session_and_leaks_nothing(quick: Operated) -> None:
    """Killed at moments of their own choice while sessions begin and end."""
    chance = random.Random(4)
    for _ in range(KILLS):
        session = quick.user.start()
        if chance.random() < 0.5:
            quick.user.wait(session["id"], *chance.choice(FROM_HERE_ON))
        quick.kill_controller()
        found = quick.user.wait(session["id"], "vm_created")
        assert inside_vm(quick, quick.user.vm(session["id"])["vmIP"])["session_id"] == found["id"]
        quick.user.end(session["id"])
        if chance.random() < 0.5:
            quick.kill_controller()
    quick.wait_until_nothing_held()


def test_many_sessions_leave_nothing_behind(quick: Operated) -> None:
    """Most are ended as soon as they begin, or on the way.

    test_session_cycles.py has hundreds of them, on VMs that do not boot.
    """
    users = [quick.another_user() for _ in range(4)]
    before = quick.leftovers()
    chance = random.Random(200)

    def cycles(user: Api) -> None:
        for _ in range(CYCLES // len(users)):
            session = user.start()
            if states := chance.choice([("vm_created",), *FROM_HERE_ON, ()]):
                user.wait(session["id"], *states)
            user.end(session["id"])
            quick.wait_until_released(session["vmId"])

    with ThreadPoolExecutor(len(users)) as pool:
        list(pool.map(cycles, users))
    quick.wait_until_nothing_held()
    assert quick.leftovers() == before


def test_logs_contain_no_tokens_and_no_vm_addresses(quick: Operated) -> None:
    """The logs of the tests above have no token and no full address of a VM."""
    text = quick.host.journal("-u 'master-controller*'")
    assert "192.168.100." in text
    for token in (quick.user.token, quick.admin.token):
        assert token not in text
    assert not re.findall(r"192\.168\.100\.\d+", text)
