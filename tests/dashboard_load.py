"""A load of many open dashboards, with the requests that the page sends.

    .venv/bin/python -m tests.dashboard_load PID URL TOKEN [CLIENTS [SECONDS]]

The controller runs by itself: PID is its process. Prints what became of the requests, and the
controller's CPU and memory over that time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

import httpx
import psutil

EVERY_SECONDS = 5.0
CHARTS_EVERY_SECONDS = 60.0


@dataclass
class DashboardLoad:
    """Answers by status, seconds that each took, and the controller's use of the machine.

    cpu_percent is of one core.
    """

    clients: int
    statuses: Counter[str] = field(default_factory=Counter)
    median_ms: float = 0.0
    longest_ms: float = 0.0
    cpu_percent: float = 0.0
    memory_mib_before: float = 0.0
    memory_mib: float = 0.0


async def dashboards_open(
    pid: int, url: str, token: str, clients: int = 200, seconds: float = 60.0
) -> DashboardLoad:
    """Open so many dashboards, one after another within five seconds, and watch the process."""
    load, process, took = DashboardLoad(clients), psutil.Process(pid), list[float]()
    load.memory_mib_before = process.memory_info().rss / 2**20
    end = time.monotonic() + EVERY_SECONDS + seconds
    async with httpx.AsyncClient(base_url=url, timeout=60) as signing_in:
        signed_in = await signing_in.post("/login", data={"token": token})
        assert signed_in.status_code == 303, signed_in.text
        cookies = dict(signed_in.cookies)
        tasks = [
            asyncio.create_task(
                _dashboard(url, cookies, number * EVERY_SECONDS / clients, end, load, took)
            )
            for number in range(clients)
        ]
        await asyncio.sleep(EVERY_SECONDS)  # until all are open
        process.cpu_percent()
        await asyncio.gather(*tasks)
        load.cpu_percent = process.cpu_percent()
        load.memory_mib = process.memory_info().rss / 2**20
    took.sort()
    load.median_ms, load.longest_ms = took[len(took) // 2] * 1000, took[-1] * 1000
    return load


async def _dashboard(
    url: str,
    cookies: dict[str, str],
    pause_seconds: float,
    end: float,
    load: DashboardLoad,
    took: list[float],
) -> None:
    await asyncio.sleep(pause_seconds)
    charts_at = 0.0
    # A connection that stayed open may end just as it is used again; a browser then asks anew.
    transport = httpx.AsyncHTTPTransport(retries=1, verify=False)
    async with httpx.AsyncClient(
        base_url=url, cookies=cookies, timeout=60, transport=transport
    ) as client:
        path = "/admin"
        while time.monotonic() < end:
            await _ask(client, path, load, took)
            if time.monotonic() >= charts_at:
                charts_at = time.monotonic() + CHARTS_EVERY_SECONDS
                await _ask(client, "/admin/charts.json", load, took)
            path = "/admin/live"
            await asyncio.sleep(EVERY_SECONDS)


async def _ask(
    client: httpx.AsyncClient, path: str, load: DashboardLoad, took: list[float]
) -> None:
    began = time.perf_counter()
    try:
        answer = await client.get(path)
        load.statuses[str(answer.status_code)] += 1
    except httpx.HTTPError as error:
        load.statuses[type(error).__name__] += 1
    took.append(time.perf_counter() - began)


if __name__ == "__main__":
    pid, url, token, *counts = sys.argv[1:]
    numbers = [int(each) for each in counts]
    print(json.dumps(asdict(asyncio.run(dashboards_open(int(pid), url, token, *numbers)))))
