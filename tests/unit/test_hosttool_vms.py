"""VMs during a restore of their host: running ones continue, ended ones do not come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.hosttool_host import FIREWALL, SLOTS, Host, bare_host, deploy

TEMPLATE = "microvm@.service"
VM, SLOT, OTHER_SLOT = "microvm@2.service", f"{SLOTS}2.service", f"{SLOTS}3.service"


def host_that_knows_vms(root: Path) -> Host:
    host = bare_host(root)
    paths = tuple(sorted({*host.scope.paths, host.paths.units / TEMPLATE}))
    return replace(host, scope=replace(host.scope, paths=paths))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = host_that_knows_vms(tmp_path / "host")
    host.unit(TEMPLATE, "1")
    deploy(host)
    return host


def test_one_that_was_started_since_goes_on(host: Host) -> None:
    host.backup()
    deploy(host, "2")
    host.start(VM)
    host.restore()
    assert host.systemd.active[VM] == "active"
    assert not [line for line in host.systemd.log if "microvm@" in line]


def test_its_slot_stays_as_it_is_and_all_else_goes_back(host: Host) -> None:
    host.backup()
    deploy(host, "2")
    host.start(VM)
    host.restore()
    assert not [line for line in host.systemd.log if SLOT in line]
    assert f"reload-or-restart {FIREWALL}" in host.systemd.log
    # It is not forgotten: the next deployment sees that the slot runs with something else.
    assert (host.paths.stamps / SLOT).read_text() == "2\n"


def test_a_slot_that_was_off_stays_on_for_its_vm(host: Host) -> None:
    host.systemd.active.pop(SLOT)
    host.backup()
    host.start(SLOT, VM)
    host.restore()
    assert host.systemd.active[SLOT] == "active"
    assert not [line for line in host.systemd.log if SLOT in line]


def test_without_one_the_slot_is_made_anew(host: Host) -> None:
    host.backup()
    deploy(host, "2")
    host.restore()
    assert f"reload-or-restart {SLOT}" in host.systemd.log


def test_a_slot_that_came_since_stays_for_its_vm_only(host: Host) -> None:
    host.backup()
    host.start(OTHER_SLOT, "microvm@3.service", f"{SLOTS}4.service")
    host.restore()
    assert host.systemd.active[OTHER_SLOT] == "active"
    assert f"{SLOTS}4.service" not in host.systemd.active


def test_one_that_has_ended_does_not_come_back(host: Host) -> None:
    host.start(VM)
    host.backup()
    host.systemd.active.pop(VM)
    deploy(host, "2")
    host.restore()
    assert VM not in host.systemd.active


def test_a_host_that_goes_back_to_what_knew_of_none_ends_them(tmp_path: Path) -> None:
    host = host_that_knows_vms(tmp_path / "host")
    host.backup()
    host.unit(TEMPLATE, "1")
    deploy(host)
    host.start(VM)
    host.restore()
    assert host.systemd.log.index(f"stop {VM}") < host.systemd.log.index(f"stop {SLOT}")
    assert VM not in host.systemd.active
    assert SLOT not in host.systemd.active
