"""Filling and draining the pool by the resources of a host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from polydev.controller.entities import Vm, now
from polydev.controller.machines.pool import pool_step
from polydev.controller.settings import PoolSettings

AT = now()
VM = Vm("", 2, "192.168.100.2", "ready", "none", AT, "4f1d", AT)
POOL = PoolSettings(size=2, spare_slots=1, least_free_memory_mib=1000)


def held(words: str) -> list[Vm]:
    """Return VMs: `primed`, `old` (of another template), `priming`, or a session's state."""
    kinds: dict[str, dict[str, Any]] = {
        "primed": {"pooled": True, "template": "new"},
        "old": {"pooled": True, "template": "old"},
        "priming": {"pooled": True, "template": "new", "state": "starting"},
        "drained": {"pooled": True, "template": "new", "state": "stopping"},
    }
    named = enumerate(words.split())
    return [
        replace(VM, **{"id": f"{word}-{number}", **kinds.get(word, {"state": word})})
        for number, word in named
    ]


@pytest.mark.parametrize(
    ("vms", "host", "expected"),
    [
        ("", {}, "add"),
        ("primed", {}, "add"),
        ("primed primed", {}, "wait: the pool is full"),
        ("primed priming", {}, "wait: the pool is full"),
        ("primed primed primed", {}, "end primed-2: the pool has more VMs than it should"),
        ("priming", {}, "wait: another VM is starting"),
        ("ready starting", {}, "wait: another VM is starting"),
        ("ready creating", {}, "wait: another VM is starting"),
        ("ready ready ready", {}, "wait: all other slots are in use"),
        ("ready ready stopping", {}, "wait: all other slots are in use"),
        ("ready ready", {}, "add"),
        ("ready drained", {}, "add"),
        ("primed old", {}, "end old-1: it was made from an older template"),
        ("old", {"template": None}, "wait: there is no template"),
        ("", {"template": None}, "wait: there is no template"),
        ("old old old", {"template": None}, "end old-2: the pool has more VMs than it should"),
        ("", {"free_memory_mib": 1255.0}, "wait: the host has 1255 MiB"),
        ("", {"free_memory_mib": 1256.0}, "add"),
        ("primed", {"free_memory_mib": 1000.0}, "wait: the host has 1000 MiB"),
        ("primed primed", {"free_memory_mib": 999.0}, "end primed-1: the host has 999 MiB"),
        ("ready", {"free_memory_mib": 999.0}, "wait: the host has 999 MiB"),
    ],
)
def test_pool_step_for_vms_and_resources(vms: str, host: dict[str, Any], expected: str) -> None:
    there: dict[str, Any] = {"slots": 4, "template": "new", "free_memory_mib": 8000.0} | host
    step = pool_step(held(vms), POOL, **there)
    named = f" {step.vm.id}" if step.vm else ""
    assert f"{step.action}{named}: {step.why}".startswith(expected)


def test_pool_of_size_0_ends_all_vms() -> None:
    none = PoolSettings(size=0)
    host: dict[str, Any] = {"slots": 4, "template": None, "free_memory_mib": 8000.0}
    assert pool_step(held("ready primed"), none, **host).action == "end"
    assert pool_step(held("ready"), none, **host).why == "the pool is full"
