"""Sessions over the API of a real controller process, on fake VMs."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polydev.controller.api import events
from polydev.controller.database import create_engine
from polydev.controller.logs import configure_logs
from polydev.controller.settings import SessionLimits
from polydev.controller.store.transactions import Database
from polydev.controller.store.vms import Vms
from polydev.errors import VmError
from tests.api import JWT_SECRET, token_of
from tests.controllers import DEADLINE_SECONDS, POLL_SECONDS, Controller, controller, run
from tests.driving import until
from tests.vms import (
    FakeHost,
    HealthyVm,
    NeverBootsVm,
    PanicsVm,
    SlowVm,
    WrongAgentVm,
)

LOGIN_URL = "https://claude.ai/oauth/authorize?code=true&state=Zm9v"


def test_session_runs_from_start_to_end(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        host.hypervisor.next.append(SlowVm)
        async with controller(host) as asked:
            session = await asked.start()
            async with asked.events(session) as events:
                await events.until(state="vm_starting")
                vm = await host.hypervisor.started(2)
                await vm.reach("network")
                await events.until(stage="network")
                assert (await asked.get(session["links"]["self"]))["boot"]["stage"] == "network"
                await vm.reach("ready")
                await events.until(state="vm_created")
                told = await asked.get(session["links"]["vm"])
                assert (told["vmIP"], told["status"]) == (vm.address, "ready")
                agent = f"http://{told['vmIP']}:{told['ports']['agent']}/health"
                assert (await asked.http.get(agent)).json()["vm_id"] == session["vmId"]
                beaten = await asked.http.post(
                    f"{session['links']['self']}/heartbeat", headers=asked.user
                )
                assert beaten.json()["heartbeatAt"]
                ended = await asked.http.delete(session["links"]["self"], headers=asked.user)
                assert ended.json()["status"] == "terminated"
                await events.until(state="terminated")
                assert await events.next() is None
            assert (await asked.released(session["vmId"]))["status"] == "ended"
            await asked.get(session["links"]["vm"], 410)
            assert await asked.get("/api/vm") == {"vms": [], "next": None}
        assert host.hypervisor.left() == []

    run(tmp_path, scenario)


@pytest.mark.parametrize("enough", ["sed -u /vm_created/q", "grep -m1 vm_created"])
def test_curl_of_events_ends_when_its_reader_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: str
) -> None:
    monkeypatch.setattr(events, "PING_SECONDS", 100 * DEADLINE_SECONDS)

    async def scenario(host: FakeHost) -> None:
        async with controller(host) as asked:
            session = await asked.start()
            url = f"{asked.http.base_url}{session['links']['events']}"
            header = f"Authorization: {asked.user['Authorization']}"
            pipeline = await asyncio.create_subprocess_exec(
                *("sh", "-c", f'curl -sN -H "$1" "$2" | {enough}', "sh", header, url),
                stdout=asyncio.subprocess.PIPE,
            )
            said, _ = await pipeline.communicate()
            assert b'"state": "vm_created"' in said.splitlines()[-1]

    run(tmp_path, scenario)


def test_head_of_an_endless_stream_ends(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        async with controller(host) as asked:
            session = await asked.start()
            for path in (session["links"]["events"], session["links"]["self"]):
                answer = await asked.http.head(path, headers=asked.user)
                assert (answer.status_code, answer.content) == (200, b"")
            await until_in_flight(asked, lambda count: count == 1)

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("kind", "reason", "stage"),
    [
        (NeverBootsVm, "init", "kernel"),
        (PanicsVm, "kernel panic", "kernel"),
        (WrongAgentVm, "answers at its address", "services"),
    ],
)
def test_failed_vm_is_reported_by_events_and_session(
    tmp_path: Path, kind: type[HealthyVm], reason: str, stage: str
) -> None:
    async def scenario(host: FakeHost) -> None:
        host.hypervisor.next.append(kind)
        async with controller(host, boot_deadline_seconds={"init": 0.5}) as asked:
            session = await asked.start()
            async with asked.events(session) as events:
                await events.until(state="failed")
                assert await events.next() is None
            failed = await asked.get(session["links"]["self"])
            assert reason in failed["reason"]
            assert failed["failure"]["reason"] == failed["reason"]
            assert failed["failure"]["stage"] == stage
            assert failed["failure"]["serialTail"]
            vm = await asked.released(session["vmId"])
            assert vm["status"] == "failed"

    run(tmp_path, scenario)


def test_login_runs_from_first_request_to_completion(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        host.hypervisor.next.append(SlowVm)
        async with controller(host, vm_check={"every_seconds": 0.05}) as asked:
            session = await asked.start()
            path = session["links"]["oauthUrl"]
            coming = await asked.get(path, 202)
            assert (coming["status"], coming["url"]) == ("vm_starting", None)
            vm = await host.hypervisor.started(2)
            async with asked.events(session) as events:
                await vm.reach("ready")
                await events.until(state="vm_created")
                assert vm.logins == 0
                for _ in range(2):
                    assert (await asked.get(path, 202))["status"] == "starting"
                await events.until(state="oauth_pending")
                assert vm.logins == 1
                assert vm.login["provider"] == "claude"
                vm.login = {**vm.login, "status": "waiting", "url": LOGIN_URL}
                told = await asked.get(path)
                assert (told["status"], told["url"]) == ("waiting", LOGIN_URL)
                vm.login = {**vm.login, "status": "done"}
                await events.until(state="authenticated")  # nobody asks; its VM is looked at
            assert (await asked.get(path))["status"] == "done"
            await asked.http.delete(session["links"]["self"], headers=asked.user)
            await asked.get(path, 410)

    run(tmp_path, scenario)


def test_login_on_paused_vm_that_cannot_resume_fails_at_once(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        async def stays(slot: int, vm_id: str) -> None:
            raise VmError(f"VM {vm_id} does not run on")

        host.hypervisor.resume = stays  # type: ignore[method-assign]
        vms = Vms(Database(create_engine(host.settings_values["database_url"])), SessionLimits())
        async with controller(host) as asked:
            session = await asked.start()
            async with asked.events(session) as events:
                await events.until(state="vm_created")
            vm = await vms.get(session["vmId"])
            assert await vms.pause(vm)
            told = asyncio.create_task(asked.get(session["links"]["oauthUrl"], 410))

            async def is_asked_for() -> bool:
                return (await vms.get(vm.id)).used_at != vm.used_at

            await until(is_asked_for, "the wish to wake it")
            await asked.http.delete(session["links"]["self"], headers=asked.user)
            problem = await told
            assert problem["type"] == "urn:polydev:error:session-expired"

    run(tmp_path, scenario)


def test_failed_login_reports_reason_and_restarts_on_request(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        async with controller(host) as asked:
            session = await asked.start()
            path = session["links"]["oauthUrl"]
            async with asked.events(session) as events:
                await events.until(state="vm_created")
            await asked.get(path, 202)
            vm = await host.hypervisor.started(2)
            vm.login = {**vm.login, "status": "failed", "detail": "exited with status 1: no disk"}
            for _ in range(2):
                problem = await asked.get(path, 502)
                assert problem["type"] == "urn:polydev:error:login-failed"
                assert "no disk" in problem["detail"]
            assert vm.logins == 1
            again = await asked.http.post(path, headers=asked.user)
            assert again.status_code == 202
            assert again.headers["retry-after"]
            assert vm.logins == 2
            vm.login = {**vm.login, "status": "waiting", "url": "javascript:alert(1)"}
            problem = await asked.get(path, 502)
            assert problem["type"] == "urn:polydev:error:agent-protocol"
            assert "alert" not in problem["detail"]

    run(tmp_path, scenario)


def test_followed_console_streams_until_vm_ends(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        host.hypervisor.next.append(SlowVm)
        async with controller(host) as asked:
            session = await asked.start()
            vm = await host.hypervisor.started(2)
            vm.say("the first words\n")
            path = f"/api/vm/{session['vmId']}/console"
            async with asked.http.stream(
                "GET", path, params={"follow": "true", "tail": 1}, headers=asked.operator
            ) as answer:
                parts = answer.aiter_text()
                text = await parts.__anext__()
                assert text == "the first words\n"
                vm.say("and \x1b[1mmore\x1b[0m\n")
                while "more" not in text:
                    text += await parts.__anext__()
                assert "\x1b[1mmore" in text
                await asked.http.delete(session["links"]["self"], headers=asked.user)
                async for part in parts:
                    text += part
            assert "the first words" in text

    run(tmp_path, scenario)


def test_followed_console_continues_after_log_is_replaced(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        host.hypervisor.next.append(SlowVm)
        async with controller(host) as asked:
            session = await asked.start()
            (await host.hypervisor.started(2)).say("the first words\n")
            path = f"/api/vm/{session['vmId']}/console"
            async with asked.http.stream(
                "GET", path, params={"follow": "true"}, headers=asked.operator
            ) as answer:
                parts = answer.aiter_text()
                assert "the first words" in await parts.__anext__()
                console = host.hypervisor.console(2, session["vmId"])
                console.unlink()
                console.symlink_to("/etc/passwd")
                rest = "".join([part async for part in parts])
            assert "error: serial.log is a symbolic link" in rest
            assert "root:" not in rest

    run(tmp_path, scenario)


def test_disconnected_clients_lose_no_database_connection(tmp_path: Path) -> None:
    lost: list[object] = []

    async def scenario(host: FakeHost) -> None:
        host.hypervisor.next.append(SlowVm)
        changes: dict[str, Any] = {"rate": {"streams": 100, "burst": 10_000}}
        async with controller(host, **changes) as asked:
            session = await asked.start()
            pool = asked.server.services.database.engine.sync_engine.pool
            sa.event.listen(pool, "invalidate", lambda *words: lost.append(words))
            paths = (session["links"]["events"], f"/api/vm/{session['vmId']}/console?follow=true")

            async def leaves(number: int) -> None:
                url = asked.http.base_url
                reader, writer = await asyncio.open_connection(url.host, url.port)
                words = f"GET {paths[number % 2]} HTTP/1.1\r\nHost: x\r\n"
                token = asked.user["Authorization"]
                writer.write(f"{words}Authorization: {token}\r\n\r\n".encode())
                if number % 3:  # else before there is an answer
                    await reader.readline()
                await asyncio.sleep(number % 20 / 1000)
                writer.transport.abort()

            for _ in range(3):
                await asyncio.gather(*(leaves(number) for number in range(60)))
            assert (await asked.get(session["links"]["self"]))["id"] == session["id"]

    run(tmp_path, scenario)
    assert lost == []


def test_next_controller_continues_sessions_and_event_streams(tmp_path: Path) -> None:
    """Followers are disconnected at once, reconnect and miss nothing."""

    async def scenario(host: FakeHost) -> None:
        host.hypervisor.next.append(SlowVm)
        # Longer than the test may take, so that it fails if the end waits for an open stream.
        async with controller(host, {"drain_seconds": 10 * DEADLINE_SECONDS}) as old:
            session = await old.start()
            async with old.events(session) as events:
                await events.until(state="vm_starting")
                old.end()
                assert await events.next() is None
            user, user_id = old.user, old.user_id
        vm = await host.hypervisor.started(2)
        assert vm.runs
        async with controller(host) as new:
            again = Controller(new.server, new.http, user_id, user, new.operator)
            async with again.events(session, events.last) as resumed:
                await vm.reach("ready")
                await resumed.until(state="vm_created")
            assert (await new.get(session["links"]["vm"]))["vmId"] == vm.launch.vm_id
        assert host.hypervisor.calls.count("start 2") == 1

    run(tmp_path, scenario)


def test_server_shutdown_ends_open_streams(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        host.hypervisor.kind = SlowVm
        async with controller(host, {"drain_seconds": 10 * DEADLINE_SECONDS}) as asked:
            session = await asked.start()
            vm = await host.hypervisor.started(2)
            console = f"/api/vm/{session['vmId']}/console?follow=true"
            following = [
                asyncio.create_task(asked.http.get(console, headers=asked.operator)),
                asyncio.create_task(
                    asked.http.get(session["links"]["events"], headers=asked.operator)
                ),
            ]
            vm.say("something\n")
            async with asked.events(session) as events:
                await events.until(state="vm_starting")
                await until_in_flight(asked, lambda count: count > 3)
            asked.end()
            for answer in await asyncio.gather(*following):
                assert answer.status_code == 200

    run(tmp_path, scenario)


async def until_in_flight(asked: Controller, is_reached: Callable[[float], bool]) -> None:
    """Wait until so many requests are under way, with the one that asks."""
    in_flight = "polydev_http_requests_in_flight"
    while True:
        text = (await asked.http.get("/metrics", headers=asked.operator)).text
        (found,) = re.findall(rf"^{in_flight} (\S+)$", text, re.MULTILINE)
        if is_reached(float(found)):
            return
        await asyncio.sleep(POLL_SECONDS)


@pytest.mark.usefixtures("logs_as_before")
def test_logs_contain_no_tokens_and_no_full_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets: list[str] = []

    async def scenario(host: FakeHost) -> None:
        configure_logs("debug", "json", host.network)
        host.hypervisor.next += [HealthyVm, WrongAgentVm, PanicsVm]
        changes: dict[str, Any] = {"session": {"per_user": 5}, "vm_check": {"every_seconds": 0.1}}
        async with controller(host, **changes) as asked:
            secrets.extend(
                each["Authorization"].removeprefix("Bearer ")
                for each in (asked.user, asked.operator)
            )
            for state in ("vm_created", "failed", "failed"):
                session = await asked.start()
                async with asked.events(session) as events:
                    await events.until(state=state)
                await asked.http.get(f"{session['links']['events']}?access_token=pdt_wrong")
                await asked.http.get(f"{session['links']['vm']}?x=pdt_other", headers=asked.user)
                await asked.http.get(f"/api/vm/{session['vmId']}/metrics", headers=asked.user)
                await asked.http.delete(session["links"]["self"], headers=asked.user)
                await asked.released(session["vmId"])
            for wrong in ("pdt_wrong-one", token_of(asked.user_id, -60)):
                secrets.append(wrong)
                await asked.http.get("/api/vm", headers={"Authorization": f"Bearer {wrong}"})
            logging.getLogger("anybody").error("http://%s:8080 is silent", host.network[2])

    run(tmp_path, scenario)
    said = capsys.readouterr().err
    assert '"serving"' in said
    assert said.count('"event": "request"') > 10
    prefix = re.escape(str(_network_of(said)))
    assert re.search(rf"{prefix}\.x", said)
    assert not re.search(rf"\b{prefix}\.\d", said)
    for secret in (*secrets, "pdt_", JWT_SECRET, "access_token"):
        assert secret not in said


def _network_of(said: str) -> str:
    """Return the beginning of the masked addresses."""
    (prefix,) = set(re.findall(r"http://(\d+\.\d+\.\d+)\.x:8080", said))
    return str(prefix)
