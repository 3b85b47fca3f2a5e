"""The controller as a separate process, on fake VMs: `python -m tests.fake_service FOLDER`.

It prints one line of JSON with its port and the users' tokens, and serves until its standard input
is closed. Everything but the hypervisor is the real thing, so its memory and its descriptors are
the controller's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from polydev.controller.app import create_app
from polydev.controller.app_services import Services
from polydev.controller.logs import configure_logs
from polydev.controller.settings import ControllerSettings
from tests.relays import serving
from tests.vms import fake_hosts

USERS = 4
SLOTS = range(2, 10)
UNLIMITED = {
    "requests_per_second": 1e6,
    "burst": 10**6,
    "starts_per_minute": 1e6,
    "credentials_per_minute": 1e6,
}


async def serve(folder: Path) -> None:
    async with fake_hosts(folder, SLOTS) as host:
        rate = {**UNLIMITED, "starts_burst": 10**6}
        settings = ControllerSettings(**{**host.settings_values, "rate": rate})
        app = create_app(settings, host.hypervisor)
        services: Services = app.state.services
        users = [await services.users.add("user") for _ in range(USERS)]
        tokens = {user.id: (await services.tokens.create(user.id, "tests"))[1] for user in users}
        async with serving(app) as (_, port):
            services.begin()
            print(json.dumps({"port": port, "tokens": tokens}), flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    configure_logs("warning", "console")
    asyncio.run(serve(Path(sys.argv[1])))
