"""A steady load of requests, half on kept connections, with a count of the results."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PAUSE_SECONDS = 0.02
# Less than the controller's drain_keep_alive_seconds.
IDLE_SECONDS = 1.0
PATH = "/api/auth/health"


@dataclass
class Load:
    """Results of the requests so far: answers by release, and failures as text."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@contextmanager
def under_load(host: str, port: int, clients: int = 4) -> Iterator[Load]:
    """Send requests from several clients for the block."""
    load, end = Load(), threading.Event()
    threads = [
        threading.Thread(target=_client, args=(host, port, number % 2 == 0, load, end))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        end.set()
        for thread in threads:
            thread.join()


def _client(host: str, port: int, keeps_open: bool, load: Load, end: threading.Event) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    asked = time.monotonic()
    while not end.wait(PAUSE_SECONDS):
        # We stood still, and an ending server closes a connection that is idle for so long.
        if time.monotonic() - asked > IDLE_SECONDS:
            connection.close()
        asked = time.monotonic()
        try:
            # A connection whose last answer said that it ends is opened anew by http.client.
            connection.request("GET", PATH)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status == 200:
                load.answers[json.loads(text)["release"]] += 1
            else:
                load.failures.append(f"{answer.status}: {text[:200]!r}")
        except (OSError, http.client.HTTPException) as error:
            load.failures.append(repr(error))
            connection.close()
        if not keeps_open:
            connection.close()
    connection.close()
