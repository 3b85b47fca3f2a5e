"""Bench: ./inv deploy to a current host against a new one, a new agent against a new image."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from polydev.deployment_records import Record
from polydev.image.build import BuildResult
from polydev.image.store import ImageStore
from polydev.lab import Lab, down, up
from polydev.progress import Steps
from polydev.settings import Settings
from tests.bench.conftest import Ratios, quickest
from tests.hosts import DeployedHost, lab_host
from tests.images import said_to_be_verified

MB = 1e6
# As a share of a first deployment's time; facts of the host, sshd, users and files included.
NO_OP_LIMIT = 0.1


@dataclass(frozen=True)
class Timed:
    record: Record
    seconds: float


@pytest.fixture(scope="module")
def images(store: ImageStore, cold: BuildResult, touched: BuildResult) -> tuple[str, str]:
    """Digests of an image and of one that differs from it in a file of the agent; the first is
    golden."""
    for result in (cold, touched):
        store.write_record(said_to_be_verified(result.record))
    store.promote(cold.record.digest)
    return cold.record.digest, touched.record.digest


@pytest.fixture(scope="module")
def bare_lab(settings: Settings) -> Iterator[tuple[Lab, Settings]]:
    """A bare host; its root and the controller's wheels come from the machine's cache."""
    cache = Settings.from_environment().cache
    own = Settings(store=settings.store, cache=cache, state=settings.state)
    name = f"b-{secrets.token_hex(3)}"
    lab = up(name, own, Steps())
    yield lab, own
    down(name, own)


@pytest.fixture(scope="module")
def host(
    bare_lab: tuple[Lab, Settings],
    images: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[DeployedHost]:
    lab, own = bare_lab
    with lab_host(lab, own, tmp_path_factory.mktemp("logs")) as host:
        yield host


@pytest.fixture(scope="module")
def first(host: DeployedHost) -> Timed:
    """The first deployment of a host that has no packages cached by other labs."""
    host.inside("rm -f /var/cache/apt/archives/*.deb")
    return timed(host)


def timed(host: DeployedHost) -> Timed:
    started = time.monotonic()
    record = host.deploy()
    return Timed(record, time.monotonic() - started)


def sent_bytes(log: Path) -> tuple[int, int]:
    """Return the image's figures in a deployment's log: bytes sent, bytes on the disk."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    texts = (str(event.get("text")) for event in events)
    found = [re.search(r"sent (\d+) of (\d+) bytes", text) for text in texts]
    (match,) = [each for each in found if each]
    return int(match[1]), int(match[2])


def log_of(host: DeployedHost, record: Record) -> Path:
    return host.logs / f"deployment-{record.id}.log"


def test_deploy_without_changes_is_fast(ratio: Ratios, host: DeployedHost, first: Timed) -> None:
    assert first.record.changes > 0
    good_seconds = NO_OP_LIMIT * first.seconds
    again = quickest(lambda: timed(host), lambda each: each.seconds, good_seconds)
    assert again.record.changes == 0
    ratio("no-op-deploy/first-deploy", again.seconds, first.seconds, limit=NO_OP_LIMIT)


def test_image_is_sent_compressed(ratio: Ratios, host: DeployedHost, first: Timed) -> None:
    sent, size = sent_bytes(log_of(host, first.record))
    ratio("image-sent/image-size", sent / MB, size / MB, limit=0.7, unit="MB")


def test_image_with_changed_agent_sends_only_the_difference(
    ratio: Ratios, host: DeployedHost, first: Timed, images: tuple[str, str]
) -> None:
    changed = replace(host, data={"image": images[1]})
    record = changed.deploy(target="vm-agent")
    assert record.changes == 1
    sent, size = sent_bytes(log_of(host, record))
    ratio("new-agent-sent/image-size", sent / MB, size / MB, limit=0.05, unit="MB")
