"""The fakes that other tests rely on behave as described."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import httpx
import pytest

from polydev.controller.machines.hypervisor import Launch
from polydev.controller.settings import ControllerSettings
from polydev.errors import VmError
from tests.driving import PATIENCE_SECONDS
from tests.vms import (
    IMAGE_DIGEST,
    RFB_GREETING,
    FakeHost,
    NoNetworkVm,
    SlowVm,
    StubbornVm,
    fake_hosts,
)


def launch(slot: int = 2) -> Launch:
    return Launch(str(uuid.uuid4()), slot, IMAGE_DIGEST, str(uuid.uuid4()))


def address(host: FakeHost, slot: int = 2) -> str:
    return str(host.network[slot])


async def health(host: FakeHost, slot: int = 2) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client:
        return await client.get(f"http://{address(host, slot)}:8080/health")


def test_healthy_vm_has_all_its_ports_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with fake_hosts(tmp_path) as host:
            settings = ControllerSettings(**host.settings_values)
            assert settings.slots == (2, 3, 4)
            wanted = launch()
            await host.hypervisor.start(wanted)
            answer = await health(host)
            assert (answer.status_code, answer.json()["vm_id"]) == (200, wanted.vm_id)
            reader, writer = await asyncio.open_connection(address(host), 5901)
            assert await reader.readexactly(len(RFB_GREETING)) == RFB_GREETING
            writer.write(b"abc")
            assert await reader.readexactly(3) == b"abc"
            assert (await host.hypervisor.poll(2)).vm_id == wanted.vm_id
            await host.hypervisor.stop(2)
            with pytest.raises(OSError):
                await asyncio.wait_for(_read_all(reader), PATIENCE_SECONDS)
            writer.close()
            await host.hypervisor.discard(2, wanted.vm_id, keep_logs=False)
            assert not host.hypervisor.left()

    async def _read_all(reader: asyncio.StreamReader) -> None:
        if not await reader.read():
            raise OSError("closed")

    asyncio.run(scenario())


def test_slow_vm_reaches_only_requested_stages(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with fake_hosts(tmp_path, kind=SlowVm) as host:
            waiting = asyncio.create_task(host.hypervisor.started(2))
            await host.hypervisor.start(launch())
            vm = await asyncio.wait_for(waiting, PATIENCE_SECONDS)
            with pytest.raises(httpx.ConnectError):
                await health(host)
            await vm.reach("network")
            assert (await health(host)).status_code == 503
            await vm.reach("ready")
            assert (await health(host)).status_code == 200

    asyncio.run(scenario())


def test_kinds_are_chosen_by_slot_and_for_the_next_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with fake_hosts(tmp_path) as host:
            host.hypervisor.next.append(StubbornVm)
            host.hypervisor.of_slot[3] = NoNetworkVm
            for slot in (2, 3, 4):
                await host.hypervisor.start(launch(slot))
            with pytest.raises(VmError):
                await host.hypervisor.stop(2)
            await host.hypervisor.stop(2)
            with pytest.raises(httpx.ConnectError):
                await health(host, 3)
            assert (await health(host, 4)).status_code == 200
            assert sorted(host.hypervisor.running()) == [3, 4]

    asyncio.run(scenario())


def test_two_hosts_have_networks_of_their_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with fake_hosts(tmp_path / "a") as one, fake_hosts(tmp_path / "b") as other:
            await one.hypervisor.start(launch())
            await other.hypervisor.start(launch())
            assert one.network != other.network

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    asyncio.run(scenario())
