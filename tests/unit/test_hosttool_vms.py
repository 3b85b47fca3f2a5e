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


def test_vm_started_after_the_backup_keeps_running(host: Host) -> None:
    host.backup()
    deploy(host, "2")
    host.start(VM)
    host.restore()
    assert host.systemd.active[VM] == "active"
    assert not [line for line in host.systemd.log if "microvm@" in line]


def test_slot_of_a_running_vm_is_not_reloaded(host: Host) -> None:
    host.backup()
    deploy(host, "2")
    host.start(VM)
    host.restore()
    assert not [line for line in host.systemd.log if SLOT in line]
    assert f"reload-or-restart {FIREWALL}" in host.systemd.log
    # The stamp stays, so the next deployment sees that the slot has another configuration.
    assert (host.paths.stamps / SLOT).read_text() == "2\n"


def test_slot_that_was_inactive_stays_active_for_its_vm(host: Host) -> None:
    host.systemd.active.pop(SLOT)
    host.backup()
    host.start(SLOT, VM)
    host.restore()
    assert host.systemd.active[SLOT] == "active"
    assert not [line for line in host.systemd.log if SLOT in line]


def test_slot_without_a_vm_is_reloaded(host: Host) -> None:
    host.backup()
    deploy(host, "2")
    host.restore()
    assert f"reload-or-restart {SLOT}" in host.systemd.log


def test_new_slot_stays_only_for_a_running_vm(host: Host) -> None:
    host.backup()
    host.start(OTHER_SLOT, "microvm@3.service", f"{SLOTS}4.service")
    host.restore()
    assert host.systemd.active[OTHER_SLOT] == "active"
    assert f"{SLOTS}4.service" not in host.systemd.active


def test_ended_vm_is_not_started_again(host: Host) -> None:
    host.start(VM)
    host.backup()
    host.systemd.active.pop(VM)
    deploy(host, "2")
    host.restore()
    assert VM not in host.systemd.active


def test_restore_to_a_scope_without_vms_stops_them(tmp_path: Path) -> None:
    host = host_that_knows_vms(tmp_path / "host")
    host.backup()
    host.unit(TEMPLATE, "1")
    deploy(host)
    host.start(VM)
    host.restore()
    assert host.systemd.log.index(f"stop {VM}") < host.systemd.log.index(f"stop {SLOT}")
    assert VM not in host.systemd.active
    assert SLOT not in host.systemd.active
