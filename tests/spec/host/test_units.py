"""Units of a deployed host: what runs, with which configuration, and how it is confined."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

from tests.spec.host.conftest import Site

OWN_UNITS = ["polydev-network.service", "polydev-firewall.service", "polydev-dns.service"]
OWN_UNITS += ["master-controller.service", "master-controller-next@.service"]
OWN_UNITS += ["microvm-slot@.service", "microvm@.service", "polydev-accelerator.service"]
OWN_UNITS += ["polydev-templates.service", "polydev-template.service"]
# 0.0 is wholly confined, 10.0 not at all.
MOST_EXPOSED = 3.0
# Units above it, with their limit and the reason.
EXPOSED = {
    # A namespace is only of use to others where it is mounted in the host's own mount
    # namespace, which rules out all settings that would give the unit one of its own. It runs
    # for some hundred milliseconds as a slot is made and listens to nobody.
    "microvm-slot@.service": 4.5,
}
SHOWN = ("Id", "ActiveState", "UnitFileState", "LoadState")
# How often the health gate is asked on a host that is too busy to answer it in time.
ATTEMPTS = 10


@pytest.fixture(scope="module")
def states(host: Host, site: Site) -> dict[str, dict[str, str]]:
    shown = host.check_output(f"systemctl show -p {','.join(SHOWN)} {' '.join(site.units)}")
    each = [dict(line.split("=", 1) for line in part.splitlines()) for part in shown.split("\n\n")]
    return {state["Id"]: state for state in each}


def test_no_unit_failed(host: Host) -> None:
    failed = host.check_output("systemctl list-units --state=failed --plain --no-legend")
    assert failed.strip() == "", f"failed units: {failed}"


def test_units_are_active(site: Site, states: dict[str, dict[str, str]]) -> None:
    wrong = {unit: states[unit]["ActiveState"] for unit in site.units if unit in states}
    wrong = {unit: state for unit, state in wrong.items() if state != "active"}
    assert not wrong
    assert set(site.units) <= set(states), "systemd does not know all units"


def test_units_start_with_the_host(site: Site, states: dict[str, dict[str, str]]) -> None:
    # Static units are wanted by other units: a slot by the target of all slots.
    wrong = {
        unit: states[unit]["UnitFileState"]
        for unit in site.units
        if states[unit]["UnitFileState"] not in ("enabled", "static")
    }
    assert not wrong
    enabled = [unit for unit in site.units if states[unit]["UnitFileState"] == "enabled"]
    assert {"polydev-slots.target", "master-controller.socket"} <= set(enabled)


def test_target_wants_every_slot(host: Host, site: Site) -> None:
    wanted = host.check_output("systemctl show -p Wants --value polydev-slots.target").split()
    slots = [unit for unit in wanted if unit.startswith("microvm-slot@")]
    assert sorted(slots) == sorted(f"microvm-slot@{number}.service" for number in site.slots)


def test_no_unit_runs_with_an_older_configuration(host: Host, site: Site) -> None:
    """The hash in each unit's files is the one that the unit recorded at its start."""
    script = (
        "for unit in %s; do "
        "wanted=$(systemctl cat $unit | sed -n 's/^X-Polydev-Config=//p' | tail -n 1); "
        "started=$(cat /run/polydev/config/$unit); "
        'test -n "$wanted" -a "$wanted" = "$started" || echo $unit; done'
    )
    wrong = host.check_output(script % " ".join(site.started())).split()
    assert not wrong, f"not started with what their files say: {wrong}"


def test_no_unit_file_changed_since_it_was_read(host: Host, site: Site) -> None:
    shown = host.check_output(f"systemctl show -p NeedDaemonReload {' '.join(site.units)}")
    assert "NeedDaemonReload=yes" not in shown


@pytest.mark.parametrize("unit", OWN_UNITS)
def test_unit_is_confined(host: Host, unit: str) -> None:
    most = EXPOSED.get(unit, MOST_EXPOSED)
    # The check does not start the instance of a template.
    name = unit.replace("@.", "@0.")
    threshold = round(most * 10)
    asked = host.run(f"systemd-analyze security --no-pager --threshold={threshold} {name}")
    assert asked.rc == 0, f"{unit}: {asked.stdout.strip().splitlines()[-1]}, at most {most}"


@pytest.mark.parametrize(
    "unit", [unit for unit in OWN_UNITS if unit.startswith(("master-", "microvm@", "polydev-temp"))]
)
def test_unit_with_secrets_leaves_no_core_dump(host: Host, unit: str) -> None:
    name = unit.replace("@.", "@0.")
    assert host.check_output(f"systemctl show -P LimitCORE {name}") == "0"


@pytest.mark.parametrize("unit", OWN_UNITS)
def test_system_call_filter_cannot_be_evaded(host: Host, unit: str) -> None:
    name = unit.replace("@.", "@0.")
    allowed = host.check_output(f"systemctl show -P SystemCallFilter {name}").split()
    assert "read" in allowed
    evading = {"io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd"}
    evading |= {"process_vm_readv", "process_vm_writev", "pidfd_getfd", "ptrace", "keyctl", "bpf"}
    assert evading.isdisjoint(allowed)


def test_exceptions_from_confinement_are_needed(host: Host) -> None:
    needless = [
        unit
        for unit in EXPOSED
        if host.run(
            f"systemd-analyze security --no-pager --threshold={round(MOST_EXPOSED * 10)} "
            f"{unit.replace('@.', '@0.')}"
        ).succeeded
    ]
    assert not needless, "confined well enough without an exception"


@pytest.mark.parametrize(
    ("user", "unit"),
    [
        ("polydev-controller", "master-controller.service"),
        ("polydev-dns", "polydev-dns.service"),
        ("polydev-templates", "polydev-templates.service"),
    ],
)
def test_service_runs_unprivileged(host: Host, user: str, unit: str) -> None:
    process = host.check_output(f"systemctl show -p MainPID --value {unit}")
    status = host.check_output(f"grep -E '^(Uid|CapEff|NoNewPrivs):' /proc/{process}/status")
    fields = {line.split(":")[0]: line.split()[1:] for line in status.splitlines()}
    assert host.check_output(f"stat -c %U /proc/{process}") == user
    assert fields["NoNewPrivs"] == ["1"]
    # CAP_NET_BIND_SERVICE, for port 53, is bit 10.
    allowed = 1 << 10 if unit == "polydev-dns.service" else 0
    assert int(fields["CapEff"][0], 16) & ~allowed == 0


MANAGE_UNITS = "org.freedesktop.systemd1.manage-units"


class TestRights:
    """polkit's answers for the controller's own process; nothing is started."""

    def may(self, host: Host, verb: str, unit: str) -> bool:
        process = host.check_output("systemctl show -P MainPID master-controller.service")
        details = f"--detail unit {unit} --detail verb {verb}"
        return bool(host.run(f"pkcheck -a {MANAGE_UNITS} --process {process} {details}").succeeded)

    @pytest.mark.parametrize("verb", ["start", "stop", "restart", "reset-failed"])
    def test_controller_may_start_and_stop_vms(self, host: Host, site: Site, verb: str) -> None:
        assert self.may(host, verb, f"microvm@{site.slots[0]}.service")

    @pytest.mark.parametrize(
        "unit",
        ["ssh.service", "microvm-slot@2.service", "master-controller.service", "microvm@.service"],
    )
    @pytest.mark.parametrize("verb", ["start", "stop", "restart"])
    def test_controller_may_not_start_other_units(self, host: Host, verb: str, unit: str) -> None:
        assert not self.may(host, verb, unit)

    @pytest.mark.parametrize("verb", ["kill", "set-property", "reload", "freeze"])
    def test_controller_may_not_change_vm_units_otherwise(
        self, host: Host, site: Site, verb: str
    ) -> None:
        assert not self.may(host, verb, f"microvm@{site.slots[0]}.service")

    @pytest.mark.parametrize("action", ["manage-unit-files", "reload-daemon", "set-environment"])
    def test_controller_may_not_manage_systemd(self, host: Host, action: str) -> None:
        process = host.check_output("systemctl show -P MainPID master-controller.service")
        name = f"org.freedesktop.systemd1.{action}"
        assert not host.run(f"pkcheck -a {name} --process {process}").succeeded


VM_PROPERTIES = ("User", "NetworkNamespacePath", "NoNewPrivileges", "Requires", "DevicePolicy")
VM_LIMITS = ("MemoryMax", "CPUQuotaPerSecUSec", "TasksMax")


@pytest.fixture(scope="module")
def vm_unit(host: Host, site: Site) -> dict[str, str]:
    """The first slot's VM as systemd would start it; sessions do."""
    names = ",".join(VM_PROPERTIES + VM_LIMITS)
    text = host.check_output(f"systemctl show -p {names} microvm@{site.slots[0]}.service")
    return dict(line.split("=", 1) for line in text.splitlines())


class TestVmUnit:
    def test_vm_unit_runs_as_its_own_user_in_its_slot(
        self, site: Site, vm_unit: dict[str, str]
    ) -> None:
        slot = site.slots[0]
        assert vm_unit["User"] == site.vm_user(slot)
        assert vm_unit["NetworkNamespacePath"] == f"/run/netns/slot-{slot}"
        assert f"microvm-slot@{slot}.service" in vm_unit["Requires"].split()
        assert (vm_unit["NoNewPrivileges"], vm_unit["DevicePolicy"]) == ("yes", "closed")

    def test_vm_unit_has_resource_limits(self, vm_unit: dict[str, str]) -> None:
        assert not [name for name in VM_LIMITS if vm_unit[name] == "infinity"]

    def test_no_vm_unit_starts_with_the_host(self, host: Host) -> None:
        assert host.check_output("systemctl is-enabled microvm@.service || true") == "static"


def test_accelerator_was_determined(host: Host) -> None:
    found = json.loads(host.check_output("cat /run/polydev/accelerator.json"))
    assert found["accelerator"] in ("kvm", "tcg")
    assert (found["accelerator"] == "kvm") == (found["why"] is None)


class TestTemplates:
    STORE = "/var/lib/firecracker/snapshots/base"

    def test_template_is_rebuilt_when_its_inputs_change(self, host: Host) -> None:
        shown = host.check_output("systemctl show -P Paths polydev-template.path")
        for path in (self.STORE, "/opt/master-controller", "/etc/master-controller/config.yaml"):
            assert f"{path} (PathChanged)" in shown
        assert host.check_output("systemctl show -P Triggers polydev-template.path") == (
            "polydev-template.service"
        )

    def test_template_folder_is_writable_by_root_only(self, host: Host) -> None:
        folder = host.file(f"{self.STORE}/templates")
        assert (folder.user, folder.mode) == ("root", 0o755)

    def test_template_socket_is_open_to_vm_users(self, host: Host) -> None:
        place = host.file("/run/polydev/templates.sock")
        assert place.is_socket
        assert place.mode == 0o666
        assert host.file("/run/polydev").mode == 0o755

    def test_template_service_has_a_private_network(self, host: Host) -> None:
        names = ("PrivateNetwork", "CapabilityBoundingSet", "RestrictNamespaces")
        shown = host.check_output(f"systemctl show -p {','.join(names)} polydev-template.service")
        assert dict(line.split("=", 1) for line in shown.splitlines()) == {
            "PrivateNetwork": "yes",
            "CapabilityBoundingSet": "cap_net_admin",
            "RestrictNamespaces": "yes",
        }


def test_controller_is_healthy(host: Host, site: Site) -> None:
    listen = host.check_output("systemctl show -p Listen --value master-controller.socket")
    address = listen.split()[0].rpartition(":")[0].replace("0.0.0.0", "127.0.0.1")
    address = address.replace("[::]", "[::1]")
    script = (
        "import sys, urllib.request as u; "
        "a = u.build_opener(u.ProxyHandler({})).open(sys.argv[1], timeout=60); "
        "print(a.status, a.read().decode())"
    )
    url = f"http://{address}:{site.port}/api/auth/health"
    said = host.check_output("/usr/bin/python3 -c %s %s", script, url)
    status, _, body = said.partition(" ")
    health = json.loads(body)
    assert (status, health["status"]) == ("200", "healthy")
    current = host.check_output("readlink /opt/master-controller/current")
    assert health["release"] == current.rpartition("/")[2]


def test_health_gate_is_passed(host: Host) -> None:
    for _ in range(ATTEMPTS):
        said = host.check_output("/opt/polydev-ai/bin/polydev-host health --seconds 0")
        wrong = [check for check in json.loads(said)["checks"] if not check["ok"]]
        if not any(check["detail"] == "no answer: timed out" for check in wrong):
            break
    assert not wrong


def test_journal_is_kept_within_limits(host: Host) -> None:
    said = host.check_output("systemd-analyze cat-config --no-pager systemd/journald.conf")
    settings = dict(
        line.split("=", 1) for line in said.splitlines() if "=" in line and line[0] not in "#;"
    )
    assert settings["Storage"] == "persistent"
    assert settings["SystemMaxUse"].endswith("M")
    assert int(settings["RateLimitBurst"]) > 0
    assert host.file("/var/log/journal").is_directory
    kib = int(host.check_output("du -sk /var/log/journal").split()[0])
    assert kib <= int(settings["SystemMaxUse"][:-1]) * 1024
