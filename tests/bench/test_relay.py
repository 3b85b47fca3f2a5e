"""Bench: the relay against Debian's websockify, with the same screens and client, in one run."""

from __future__ import annotations

import selectors
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.bench.conftest import Ratios
from tests.bench.relays import Bench, bench, cpu_seconds
from tests.bench.rfb import ALL_UPDATES, GREETING, ONE_UPDATE, RECORDING, Direct, Relayed, Viewer

REPLAYS = 2
VIEWERS = 4
ROUNDS = 15
UPDATES = 400
IDLE_VIEWERS = 100
VIEWERS_A_SESSION = 8
# Longer than it takes for every viewer to be pinged once.
IDLE_SECONDS = 22.0
# The kernel counts by hundredths of a second: of a quiet process none or one, now and then.
QUIET_CPU_SECONDS = 0.011
QUIET_LOOKS = 30
MEGABYTE = 1e6


@pytest.fixture(scope="module")
def relays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    sessions = -(-IDLE_VIEWERS // VIEWERS_A_SESSION)
    with bench(tmp_path_factory.mktemp("relays"), range(2, 2 + sessions)) as made:
        yield made


def opened(relayed: Relayed) -> Viewer:
    viewer = Viewer(relayed)
    viewer.skip(len(GREETING))
    return viewer


def replay_cost(relayed: Sequence[Relayed], process: psutil.Process) -> float:
    """Return the CPU seconds of sending the whole recording to each, as fast as they read."""
    viewers = [opened(each) for each in relayed]
    before = cpu_seconds(process)
    with ThreadPoolExecutor(len(viewers)) as pool:
        list(pool.map(watch_all, viewers))
    cost = cpu_seconds(process) - before
    for viewer in viewers:
        viewer.close()
    return cost


def watch_all(viewer: Viewer) -> None:
    viewer.ask(ALL_UPDATES)
    viewer.skip(sum(RECORDING))


def answer_seconds(client: Direct) -> list[float]:
    """Return the seconds from request to last byte of each of the recording's first updates."""
    taken = []
    client.skip(len(GREETING))
    for size in RECORDING[:UPDATES]:
        started = time.perf_counter()
        client.ask(ONE_UPDATE)
        client.skip(size)
        taken.append(time.perf_counter() - started)
    client.close()
    return taken


def added_latency_p99(rounds: list[list[float]], without: list[list[float]]) -> float:
    """Return the 99th percentile of the latency that the relay adds to each update's median.

    The median, since with more processes than processors any of them is kept waiting now and
    then, for ten times what an answer takes.
    """
    added: list[float] = [
        statistics.median(relayed) - statistics.median(direct)
        for relayed, direct in zip(
            zip(*rounds, strict=True), zip(*without, strict=True), strict=True
        )
    ]
    return statistics.quantiles(added, n=100)[98]


def test_relay_throughput_per_cpu_second_is_three_times_websockify(
    ratio: Ratios, relays: Bench
) -> None:
    ours = theirs = 0.0
    for _ in range(REPLAYS):
        ours += replay_cost(relays.ours[:VIEWERS], relays.our_process)
        theirs += replay_cost([relays.theirs] * VIEWERS, relays.their_process)
    sent = REPLAYS * VIEWERS * sum(RECORDING) / MEGABYTE
    ratio(
        "websockify-throughput/relay-throughput",
        sent / theirs,
        sent / ours,
        limit=1 / 3,
        unit="MB/cpu-s",
    )


def test_relay_adds_less_latency_than_websockify(ratio: Ratios, relays: Bench) -> None:
    without, ours, theirs = [], [], []
    for _ in range(ROUNDS):
        without.append(answer_seconds(Direct(relays.vm)))
        ours.append(answer_seconds(Viewer(relays.ours[0])))
        theirs.append(answer_seconds(Viewer(relays.theirs)))
    ratio(
        "relay-added-latency-p99/websockify-added-latency-p99",
        added_latency_p99(ours, without) * 1e6,
        added_latency_p99(theirs, without) * 1e6,
        limit=1,
        unit="us",
    )


def answer_pings(waiting: selectors.BaseSelector, seconds: float) -> int:
    """Answer pings for so long, as idle viewers do; return how many came."""
    end, pings = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        for key, _ in waiting.select(left):
            key.data.answer_ping()
            pings += 1
    return pings


def wait_until_quiet(waiting: selectors.BaseSelector, process: psutil.Process) -> None:
    """Wait until the process has finished opening the viewers, or takes too long."""
    for _ in range(QUIET_LOOKS):
        before = cpu_seconds(process)
        answer_pings(waiting, 1)
        if cpu_seconds(process) - before < QUIET_CPU_SECONDS:
            return


def test_hundred_idle_viewers_use_under_one_percent_of_a_core(ratio: Ratios, relays: Bench) -> None:
    viewers = [opened(relays.ours[number // VIEWERS_A_SESSION]) for number in range(IDLE_VIEWERS)]
    with selectors.DefaultSelector() as waiting:
        for viewer in viewers:
            waiting.register(viewer.socket, selectors.EVENT_READ, viewer)
        wait_until_quiet(waiting, relays.our_process)
        before = cpu_seconds(relays.our_process)
        pings = answer_pings(waiting, IDLE_SECONDS)
        cost = cpu_seconds(relays.our_process) - before
    for viewer in viewers:
        viewer.close()
    assert pings >= IDLE_VIEWERS
    ratio("100-idle-viewers/core", cost, IDLE_SECONDS, limit=0.01)
