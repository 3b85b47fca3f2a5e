"""Two relays before the same screens, each a process of its own: the controller and websockify.

    python -m tests.bench.relays FD SETTINGS    the controller, without what goes on beside it

Debian's congestion control does not pace. One that does, as BBR, has the kernel set a timer for
almost every packet, and on loopback that is most of what any relay costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from polydev.controller.app import create_app
from polydev.controller.app_services import Services
from polydev.controller.background_tasks import Background
from polydev.controller.server import Server
from polydev.controller.settings import ControllerSettings, SessionLimits
from polydev.controller.store.sessions import NewSession
from polydev.controller.store.vm_slots import sync_slots
from polydev.host_layout import VNC_PORT, slot_address
from tests.api import StillHypervisor
from tests.bench.rfb import Relayed
from tests.vms import IMAGE_DIGEST, fake_hosts

ROOT = Path(__file__).resolve().parents[2]
WEBSOCKIFY = "/usr/bin/websockify"
PACELESS = ("cubic", "reno")  # Debian's own first
BACKLOG = 512


@dataclass(frozen=True)
class Bench:
    """`ours` has a screen for each slot, `theirs` the first one's; `vm` is that VM itself."""

    ours: Sequence[Relayed]
    our_process: psutil.Process
    theirs: Relayed
    their_process: psutil.Process
    vm: tuple[str, int]


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and its children so far."""
    used = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in used)


@contextmanager
def bench(root: Path, slots: Sequence[int]) -> Iterator[Bench]:
    loop = asyncio.new_event_loop()
    hosts = fake_hosts(root, slots)
    host = loop.run_until_complete(hosts.__aenter__())
    try:
        settings = ControllerSettings(
            **host.settings_values, session=SessionLimits(per_user=len(slots))
        )
        token, sessions = loop.run_until_complete(_sessions(settings, root))
        with ExitStack() as stack:
            addresses = [str(slot_address(host.network, slot)) for slot in slots]
            screens = [stack.enter_context(_listening(address, VNC_PORT)) for address in addresses]
            stack.enter_context(_process("tests.bench.rfb", screens))
            yield _relays(stack, host.settings_values, token, sessions, addresses[0])
    finally:
        loop.run_until_complete(hosts.__aexit__(None, None, None))
        loop.close()


def _relays(
    stack: ExitStack,
    settings: dict[str, Any],
    token: str,
    sessions: Sequence[str],
    address: str,
) -> Bench:
    ours = stack.enter_context(_listening("127.0.0.1", 0))
    our_process = stack.enter_context(_process("tests.bench.relays", [ours], json.dumps(settings)))
    theirs = stack.enter_context(_listening("127.0.0.1", 0))
    their_process = stack.enter_context(
        _spawned([WEBSOCKIFY, "--inetd", f"{address}:{VNC_PORT}"], stdin=theirs)
    )
    headers = {"Authorization": f"Bearer {token}"}
    return Bench(
        ours=[
            Relayed(_port(ours), f"/api/auth/session/{each}/novnc/websock", headers)
            for each in sessions
        ],
        our_process=our_process,
        theirs=Relayed(_port(theirs), "/websockify", {}),
        their_process=their_process,
        vm=(address, VNC_PORT),
    )


async def _sessions(settings: ControllerSettings, root: Path) -> tuple[str, list[str]]:
    """Make a user and a session on each slot with its VM marked as ready; return token and ids."""
    app = create_app(settings, StillHypervisor(root))
    services: Services = app.state.services
    await sync_slots(services.database, settings.slots, settings.vm_network)
    user = await services.users.add("user")
    _, token = await services.tokens.create(user.id, "bench")
    sessions = []
    for _ in settings.slots:
        session, _ = await services.sessions.start(NewSession(user.id, "claude", IMAGE_DIGEST))
        await services.vms.launched(session.vm_id)
        await services.vms.ready(session.vm_id)
        sessions.append(session.id)
    await services.close()
    return token, sessions


@contextmanager
def _listening(address: str, port: int) -> Iterator[socket.socket]:
    with socket.create_server((address, port), backlog=BACKLOG) as made:
        for name in PACELESS:
            with contextlib.suppress(OSError):  # this kernel has it not
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
                break
        yield made


def _port(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


@contextmanager
def _process(module: str, inherited: Sequence[socket.socket], *words: str) -> Iterator[Any]:
    numbers = [each.fileno() for each in inherited]
    argv = [sys.executable, "-m", module, *map(str, numbers), *words]
    with _spawned(argv, pass_fds=numbers) as process:
        yield process


@contextmanager
def _spawned(argv: Sequence[str], **options: Any) -> Iterator[psutil.Process]:
    with subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    ) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def main(descriptor: int, settings: str) -> None:
    values = json.loads(settings)
    made = ControllerSettings(**values)
    app = create_app(made, StillHypervisor(Path(values["vm_root"])))
    app.state.services = replace(app.state.services, background=Background({}))
    Server(made, app, only_if_healthy=False).run([socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
