"""Deployment of a new host: as declared, without drift, and repaired where it was changed."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from polydev.client.doctor_findings import DoctorFinding
from polydev.client.host_checks import host_findings
from polydev.client.host_facts import gather
from polydev.deployment.pyinfra_process import describe
from polydev.deployment_records import Record
from polydev.errors import ConfigError
from polydev.processes import Completed, run
from tests.hosts import DATABASE, ROOT, TOOL, DeployedHost, variant

PROGRAMS = Path(sys.executable).parent
UNITS = "/etc/systemd/system"
SSH_CONFIG = """\
Host *
  IdentityFile {lab.key}
  IdentitiesOnly yes
  UserKnownHostsFile {lab.known_hosts}
  StrictHostKeyChecking yes
  ControlPath {folder}/%C
"""
DIGEST = re.compile(r"(?<=golden image) [0-9a-f]{12}$")
# Each plan thinks of a release of its own.
NEW_ID = re.compile(r"\d{8}_\d{6}-[0-9a-f]+(-dirty)?")
NOBODYS_LAB = "nobodys"


@dataclass(frozen=True)
class Edit:
    """Something done to a host by hand; `operation` mends it and shows `difference`.

    Where VMs, or the walls between them, are in danger, `problem` is how the doctor says so.
    """

    command: str
    operation: str
    difference: tuple[str, ...]
    problem: str = ""


CONTROLLERS = (
    Edit(
        "sed -i s/^port:.*/port:\\ 4001/ /etc/master-controller/config.yaml && "
        "systemctl restart master-controller.service",
        "Controller | /etc/master-controller/config.yaml",
        ("- port: 4001", "+ port: 4000"),
    ),
    Edit("", "Controller | handover", ("- master-controller.service: release",)),
)
IMAGES = (
    Edit(
        "rm /var/lib/firecracker/snapshots/base/golden-rootfs.ext4",
        "Images | golden image",
        (),
        "golden image: there is none",
    ),
)
FOLDER = Edit(
    "chmod 777 /etc/polydev",
    "Accounts and folders | folders",
    ("- /etc/polydev: mode 777", "+ /etc/polydev: mode 755"),
)
IN_DATABASE = f"""python3 -c "import sqlite3, sys
connection = sqlite3.connect('{DATABASE}', timeout=60)
[connection.execute(each) for each in sys.argv[1:]]
connection.commit()" """
# One manual change of each kind of thing that a deployment makes.
RELEASES = (
    Edit(
        "echo >$(echo /opt/master-controller/current/venv/lib/python3*/site-packages)/x.pth",
        "Controller | release",
        ("x.pth does not belong to the release",),
        "release: /opt/master-controller/releases/",
    ),
    Edit(
        f"{IN_DATABASE} 'DROP INDEX vms_slot_held' 'CREATE INDEX by_role ON users (role)'"
        " 'CREATE TRIGGER silence BEFORE INSERT ON users BEGIN SELECT RAISE(IGNORE); END'",
        "Controller | database",
        ("+ index vms_slot_held", "- index by_role", "- trigger silence on users"),
        "database: + index vms_slot_held",
    ),
)
OPEN = "microvm@.service.d/x.conf"
ROOTFS = "/var/lib/firecracker/snapshots/base/images/*/rootfs.ext4"
UNITS_AND_FILES = (
    FOLDER,
    Edit(
        f"sed -i s/^RestartSec=1/RestartSec=7/ {UNITS}/polydev-dns.service && "
        "systemctl daemon-reload && systemctl restart polydev-dns.service",
        f"Names | {UNITS}/polydev-dns.service",
        ("- RestartSec=7", "+ RestartSec=1"),
    ),
    Edit("", "Names | polydev-dns.service", ("files changed",)),
    Edit(
        f"mkdir -p {UNITS}/microvm@.service.d {UNITS}/polydev-firewall.service.d && "
        f"printf '[Service]\nPrivateDevices=no\nSystemCallFilter=\n' >{UNITS}/{OPEN} && "
        f"printf '[Service]\nUMask=0000\n' >{UNITS}/polydev-firewall.service.d/x.conf && "
        f"ln -s /dev/null {UNITS}/microvm@4.service && systemctl daemon-reload",
        "Units | files of others",
        (f"- {UNITS}/{OPEN}", f"- {UNITS}/microvm@4.service"),
        f"overrides: {UNITS}/{OPEN}",
    ),
    Edit("", "Firewall | polydev-firewall.service", ("files changed",)),
    Edit(
        f"chmod 777 /run/polydev/config && chown polydev-vm-3 {ROOTFS} && chmod 644 {DATABASE}",
        "Accounts and folders | rights to write",
        (
            "- /run/polydev/config: mode 777 of 0:0",
            "rootfs.ext4: mode 644 of ",
            f"- {DATABASE}: mode 644 of ",
        ),
        "permissions: /run/polydev/config: mode 777",
    ),
    Edit(
        "echo net.ipv4.ip_forward=0 >/etc/sysctl.d/99-x.conf && "
        "printf '[Journal]\nStorage=volatile\n' >/etc/systemd/journald.conf.d/99-x.conf && "
        "printf '[Match]\nName=br-vm\n' >/etc/systemd/network/05-x.network && "
        "printf '[Match]\nOriginalName=vm-*\n[Link]\nName=x\n' >/etc/systemd/network/05-x.link && "
        "echo 'd /etc/polydev 0777' >/etc/tmpfiles.d/a.conf",
        "Settings | files of others",
        (
            "- /etc/sysctl.d/99-x.conf: net.ipv4.ip_forward=0",
            "- /etc/systemd/journald.conf.d/99-x.conf: Storage=volatile",
            "- /etc/systemd/network/05-x.network",
            "- /etc/systemd/network/05-x.link",
            "- /etc/tmpfiles.d/a.conf: d /etc/polydev 0777",
        ),
        "settings: - /etc/sysctl.d/99-x.conf",
    ),
    Edit(
        "rm /opt/polydev-ai/reserve",
        "Host tool | /opt/polydev-ai/reserve",
        ("- /opt/polydev-ai/reserve: 0 MiB", "+ /opt/polydev-ai/reserve: 16 MiB"),
    ),
    Edit(
        "chmod 666 /etc/polydev/dns.conf",
        "Names | /etc/polydev/dns.conf",
        ("mode 666", "mode 644"),
    ),
    Edit(
        f"chown deploy {UNITS}/microvm@.service",
        f"VMs | {UNITS}/microvm@.service",
        ("mode 644, deploy:root", "mode 644, root:root"),
    ),
    Edit(
        "systemctl stop microvm-slot@3.service",
        "Slots | microvm-slot@3.service",
        ("- microvm-slot@3.service: not active", "+ microvm-slot@3.service: active"),
        "slots: slot-3",
    ),
    Edit(
        "systemctl disable polydev-network.service",
        "Bridge | polydev-network.service",
        ("active, not enabled", "active, enabled"),
    ),
)
RULE_BY_HAND = """polkit.addRule(function(action, subject) {
    if (subject.user.indexOf("polydev-vm-") == 0) return polkit.Result.YES;
});"""
USERS = "Accounts and folders | users"
ACCOUNTS = (
    Edit(
        "usermod --shell /bin/bash --password '' --groups adm polydev-vm-3",
        USERS,
        (
            "- user polydev-vm-3: shell /bin/bash",
            "- user polydev-vm-3: password not locked",
            "- user polydev-vm-3: further groups adm",
        ),
        "accounts: - user polydev-vm-3: shell",
    ),
    Edit(
        "gpasswd --add deploy polydev-controller && "
        "usermod --comment Somebody polydev-controller && "
        "unshare --fork --pid --mount-proc usermod --home /tmp polydev-controller",
        USERS,
        (
            "- user polydev-controller: comment Somebody",
            "- user polydev-controller: home /tmp",
            "+ user polydev-controller: home /var/lib/master-controller",
            "- user polydev-controller: further members of its group deploy",
        ),
        "accounts: - user polydev-controller: further members of its group deploy",
    ),
    Edit(
        # Not usermod, which goes through all files of the user's home: of /, and of /proc.
        r"sed -i 's/^\(polydev-vm-5:x\):[0-9]*:/\1:0:/' /etc/passwd",
        USERS,
        ("- user polydev-vm-5: ids 0:", "+ user polydev-vm-5: ids of its own"),
        "accounts: - user polydev-vm-5: ids 0:",
    ),
    Edit(
        "gpasswd --administrators deploy polydev-vm-6",
        USERS,
        ("- user polydev-vm-6: administrators of its group deploy",),
        "accounts: - user polydev-vm-6: administrators of its group deploy",
    ),
    Edit(
        "echo 'polydev-vm-4 ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/90-by-hand && "
        "chmod 440 /etc/sudoers.d/90-by-hand",
        USERS,
        ("- user polydev-vm-4: sudo /etc/sudoers.d/90-by-hand",),
        "accounts: - user polydev-vm-4: sudo /etc/sudoers.d/90-by-hand",
    ),
    Edit(
        "sed -i 's#/^microvm.*/[.]test#/./.test#' /etc/polkit-1/rules.d/50-polydev.rules && "
        f"echo '{RULE_BY_HAND}' >/etc/polkit-1/rules.d/10-by-hand.rules && "
        "systemctl restart polkit.service",
        "VMs | /etc/polkit-1/rules.d/50-polydev.rules",
        ("/./.test(", "/^microvm@[0-9]+"),
    ),
    Edit(
        "",
        "VMs | polkit",
        (
            "- polkit: the controller may start ssh.service",
            "- polkit: /etc/polkit-1/rules.d/10-by-hand.rules names users of ours",
            "- polkit: polydev-vm-2 may org.freedesktop.login1.reboot",
        ),
        "polkit: the controller may start ssh.service",
    ),
)
KERNEL = (
    Edit(
        "nft add rule inet polydev from_vm_to_host tcp dport 4000 accept",
        "Firewall | table polydev",
        ("-\t\ttcp dport 4000 accept",),
        "firewall: tcp dport 4000 accept",
    ),
    Edit(
        "nft -a list chain inet polydev from_vm | "
        'sed -n \'s/.*oifname "br-vm" drop # handle/'
        "nft delete rule inet polydev from_vm handle/p' | sh",
        "Firewall | table polydev",
        ('+\t\toifname "br-vm" drop',),
        'firewall: oifname "br-vm" drop',
    ),
    Edit("", "Dead-man timer | armed", ("access to the host",)),
    Edit(
        "sysctl -q -w net.ipv4.conf.all.proxy_arp=1 && "
        "ip rule add to 192.168.100.0/25 priority 90 prohibit && "
        "ip -6 rule add iif br-vm priority 91 lookup 77",
        "Bridge | polydev-network.service",
        (
            "- bridge: settings net.ipv4.conf.all.proxy_arp: 1",
            "- bridge: routes policy: 90: prohibit dst 192.168.100.0 dstlen 25",
            "- bridge: routes IPv6 policy: 91: 77 iif br-vm",
        ),
        "bridge: bridge: routes policy: unexpected: 90: prohibit",
    ),
    Edit(
        "sysctl -q -w net.core.somaxconn=128",
        "Kernel settings | sysctl net.core.somaxconn",
        ("- net.core.somaxconn = 128", "+ net.core.somaxconn = 4096"),
    ),
    Edit(
        "bridge link set dev vm-2 isolated off",
        "Slots | microvm-slot@2.service",
        ("- slot-2: vm-2 isolated: off", "+ slot-2: vm-2 isolated: on"),
        "slots: slot-2: vm-2 isolated: off instead of on",
    ),
    Edit(
        "ip netns exec slot-4 nft flush ruleset",
        "Slots | microvm-slot@4.service",
        ("+ slot-4: nftables rules: type filter hook forward priority filter; policy drop;",),
        "slots: slot-4: nftables rules",
    ),
    Edit(
        "ip netns exec slot-5 ip link set tap0 down",
        "Slots | microvm-slot@5.service",
        ("- slot-5: tap0 state: down", "+ slot-5: tap0 state: up"),
        "slots: slot-5: tap0 state: down",
    ),
    Edit(
        "ip link set vm-6 down",
        "Slots | microvm-slot@6.service",
        ("- slot-6: vm-6 state: down", "+ slot-6: vm-6 state: up"),
        "slots: slot-6: vm-6 state: down",
    ),
    Edit(
        "ip netns exec slot-7 sysctl -q -w net.ipv4.ip_forward=0 && ip link set vm-7 mtu 1400",
        "Slots | microvm-slot@7.service",
        ("- slot-7: settings net.ipv4.ip_forward: 0", "- slot-7: vm-7 mtu: 1400"),
        "slots: slot-7: settings net.ipv4.ip_forward: 0",
    ),
    Edit(
        "ip -n slot-8 address add 192.0.2.9/24 dev tap0 && "
        "ip -n slot-8 route add 198.51.100.0/24 dev tap0 && "
        "ip -n slot-8 neighbour add 192.168.100.1 lladdr 02:00:00:00:00:99 dev uplink",
        "Slots | microvm-slot@8.service",
        ("192.0.2.9/24", "198.51.100.0/24", "192.168.100.1 lladdr 02:00:00:00:00:99 dev uplink"),
        "slots: slot-8: ",
    ),
    Edit(
        "ip netns delete slot-9",
        "Slots | microvm-slot@9.service",
        ("- slot-9: namespace: missing", "+ slot-9: namespace: there"),
        "slots: slot-9: namespace: missing",
    ),
)
SSHD = (
    Edit(
        "rm /etc/ssh/sshd_config.d/00-polydev.conf && systemctl restart ssh.service",
        "SSH | /etc/ssh/sshd_config.d/00-polydev.conf",
        ("+ PasswordAuthentication no",),
    ),
    Edit(
        "",
        "SSH | ssh.service",
        ("- sshd: clientaliveinterval 0", "+ sshd: clientaliveinterval 5"),
        "sshd: - sshd: clientaliveinterval 0",
    ),
    Edit(
        "echo PasswordAuthentication yes >/etc/ssh/sshd_config.d/50-polydev.conf",
        "SSH | /etc/ssh/sshd_config.d/50-polydev.conf",
        ("- /etc/ssh/sshd_config.d/50-polydev.conf",),
    ),
)
# The last of all: with the bridge down, nothing that needs its address can be started.
BRIDGE = Edit(
    "ip link set br-vm down",
    "Bridge | polydev-network.service",
    ("- bridge: br-vm state: down", "+ bridge: br-vm state: up"),
    "bridge: bridge: br-vm state: down",
)
HOSTS = (*RELEASES, *UNITS_AND_FILES, *ACCOUNTS, *KERNEL, *SSHD, BRIDGE)
EVERYTHING = (*CONTROLLERS, *IMAGES, *HOSTS)


def verb(*words: str, **env: str) -> Completed:
    """Run a verb as an operator does; return its result with any status."""
    argv = [str(PROGRAMS / "inv"), "--search-root", str(ROOT), *words]
    return run(argv, cwd=ROOT, env=env, check=False)


def run_specs(deployed: DeployedHost) -> Completed:
    """Run the specs by plain pytest over one SSH connection."""
    # A socket's path is short, and those of the tests' own folders are not.
    with TemporaryDirectory(prefix="specs-") as name:
        config = Path(name, "ssh_config")
        config.write_text(SSH_CONFIG.format(lab=deployed.lab, folder=name))
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/spec/host"]
        argv += [f"--hosts=ssh://{deployed.ssh_address()}", f"--ssh-config={config}", "--sudo"]
        try:
            return run(argv, cwd=ROOT, check=False)
        finally:
            words = ["-F", str(config), "-O", "exit", "-p", str(deployed.lab.ssh_port)]
            run(["ssh", *words, f"{deployed.lab.user}@{deployed.lab.address}"], check=False)


def require_specs_passed(specs: Completed) -> None:
    assert specs.status == 0, specs.stdout
    assert "passed" in specs.stdout
    assert "skipped" not in specs.stdout


class TestFirstDeployment:
    def test_record_of_first_deployment_is_succeeded(self, deployed: DeployedHost) -> None:
        first = deployed.records()[-1]
        assert (first.kind, first.status, first.target) == ("deploy", "succeeded", "all")
        assert (first.previous, first.state) == (None, first.id)
        assert first.backup
        assert first.changes > 40
        assert first.gate is not None
        assert first.gate["ok"], first.gate

    def test_backup_of_first_deployment_verifies(self, deployed: DeployedHost) -> None:
        newest = next(record for record in deployed.records() if record.backup)
        deployed.inside(f"{TOOL} backup verify --id {newest.id}")

    def test_gate_and_specs_pass(self, deployed: DeployedHost) -> None:
        assert deployed.gate()["ok"]
        require_specs_passed(run_specs(deployed))


class TestAsDeclared:
    def test_second_deployment_changes_nothing(self, deployed: DeployedHost) -> None:
        before = deployed.listing()
        again = deployed.deploy()
        assert (again.status, again.changes, again.operations) == ("succeeded", 0, [])
        assert not again.backup, "there was nothing to go back from"
        assert deployed.listing() == before

    def test_drift_reports_nothing(self, deployed: DeployedHost) -> None:
        done = verb("drift")
        assert done.status == 0, done.stdout + done.stderr
        assert done.stdout == f"lab-{deployed.lab.name} is as declared\n"

    def test_plain_pyinfra_plans_no_changes(self, deployed: DeployedHost) -> None:
        words = ["inventory/lab.py", "deploy.py", "--dry", "--diff"]
        done = run([PROGRAMS / "pyinfra", *words], cwd=ROOT)
        said = done.stdout + done.stderr
        assert "Controller | handover" in said
        changing = f"1 (lab-{deployed.lab.name})"
        assert [line for line in said.splitlines() if changing in line] == []


@dataclass(frozen=True)
class EditedHost:
    """The reports about a host edited by hand, and the effects of the deployment after that."""

    drift: Completed
    drift_json: Completed
    plan_json: Completed
    specs: Completed
    gate: dict[str, Any]
    doctor: dict[str, DoctorFinding]
    watched: dict[str, Any]
    is_left_alone: bool
    record: Record
    again: Record
    is_restored: bool

    @property
    def differences(self) -> dict[str, list[str]]:
        found = json.loads(NEW_ID.sub("ID", self.drift_json.stdout))["operations"]
        return {operation["name"]: operation["diff"] for operation in found}


@pytest.fixture(scope="module")
def edited_host(deployed: DeployedHost) -> EditedHost:
    before = without_new(deployed.listing())
    edit(deployed, EVERYTHING)
    since = deployed.inside('python3 -c "import time; print(time.monotonic())"')
    edited, records = deployed.listing(), len(deployed.records())
    drift, drift_json = verb("drift", "--diff"), verb("drift", "--json")
    plan_json = verb("deploy", "--plan", "--json")
    is_left_alone = (deployed.listing(), len(deployed.records())) == (edited, records)
    specs = run_specs(deployed)
    gate = deployed.gate()
    target = deployed.host.target
    doctor = {each.name: each for each in host_findings(target.name, gather(target))}
    watched = json.loads(deployed.inside(f"timeout 600 python3 -c {shlex.quote(WATCHED)} {since}"))
    record, again = deployed.deploy(), deployed.deploy()
    return EditedHost(
        drift=drift,
        drift_json=drift_json,
        plan_json=plan_json,
        specs=specs,
        gate=gate,
        doctor=doctor,
        watched=watched,
        is_left_alone=is_left_alone,
        record=record,
        again=again,
        is_restored=without_new(deployed.listing()) == before,
    )


# Prints a report of the watch whose comparison began after a time: one that follows a report that
# was made after it.
WATCHED = """
import json, sys, time
def report():
    with open("/run/polydev/network.json") as file:
        return json.load(file)
first = report()
while first["at"] < float(sys.argv[1]):
    time.sleep(0.2)
    first = report()
while (next := report())["at"] == first["at"]:
    time.sleep(0.2)
print(json.dumps(next))
"""


def edit(deployed: DeployedHost, edits: tuple[Edit, ...]) -> None:
    deployed.inside("set -e\n" + "\n".join(each.command for each in edits))


def without_new(listing: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the listing without the links to the image and the release."""
    links = ("/golden-rootfs.ext4", "/current")
    return [entry for entry in listing if not str(entry["path"]).endswith(links)]


def repairing_operations(edits: tuple[Edit, ...], names: list[str]) -> list[str]:
    """Return the operations that repair the edits."""
    wanted = {edit.operation for edit in edits}
    return [name for name in names if DIGEST.sub("", name) in wanted]


class TestHandEdits:
    def test_drift_exits_with_2(self, edited_host: EditedHost) -> None:
        assert (edited_host.drift.status, edited_host.drift_json.status) == (2, 2)
        assert json.loads(edited_host.drift_json.stdout)["changes"] == len(edited_host.differences)

    @pytest.mark.parametrize("edit", EVERYTHING, ids=lambda edit: edit.operation)
    def test_drift_shows_difference_of_each_edit(self, edited_host: EditedHost, edit: Edit) -> None:
        (name,) = repairing_operations((edit,), list(edited_host.differences))
        said = edited_host.differences[name]
        assert said, "no difference is shown"
        for difference in edit.difference:
            assert any(difference in line for line in said), said
        # Text for people has no tabs.
        text = NEW_ID.sub("ID", edited_host.drift.stdout)
        shown = [" ".join(line.split()) for line in text.splitlines()]
        assert name in shown
        assert {" ".join(line.split()) for line in said} <= set(shown)

    def test_drift_reports_only_the_edits(self, edited_host: EditedHost) -> None:
        names = list(edited_host.differences)
        assert repairing_operations(EVERYTHING, names) == names

    def test_plan_matches_drift_and_changes_nothing(self, edited_host: EditedHost) -> None:
        assert edited_host.plan_json.status == 0
        plan, drift = edited_host.plan_json.stdout, edited_host.drift_json.stdout
        assert json.loads(NEW_ID.sub("ID", plan)) == json.loads(NEW_ID.sub("ID", drift))
        assert edited_host.is_left_alone

    def test_specs_fail_on_edited_host(self, edited_host: EditedHost) -> None:
        assert edited_host.specs.status == 1
        for name in ("test_mode_and_owner", "test_units_are_active", "test_kernel_setting"):
            assert name in edited_host.specs.stdout

    def test_gate_and_watch_report_every_edited_network_part(self, edited_host: EditedHost) -> None:
        details = {
            each["name"]: each["detail"] for each in edited_host.gate["checks"] if not each["ok"]
        }
        assert "br-vm state: down instead of up" in details["bridge"]
        for number in range(2, 10):
            assert f"slot-{number}: " in details["slots"]
        assert "firewall" in details
        parts = {each["part"] for each in edited_host.watched["differences"]}
        assert parts == {"bridge", "firewall", *(f"slot-{number}" for number in range(2, 10))}
        opened = {each["part"] for each in edited_host.watched["differences"] if each["opens"]}
        assert {"slot-2", "slot-4", "firewall"} <= opened

    @pytest.mark.parametrize(
        "edit", [each for each in EVERYTHING if each.problem], ids=lambda edit: edit.problem
    )
    def test_doctor_reports_edits_that_endanger_vms(
        self, edited_host: EditedHost, edit: Edit
    ) -> None:
        name, _, words = edit.problem.partition(": ")
        found = edited_host.doctor[name]
        assert found.state == "problem"
        assert words in found.found
        assert found.todo

    def test_deployment_repairs_exactly_the_edits(self, edited_host: EditedHost) -> None:
        assert edited_host.record.operations == list(edited_host.differences)
        assert edited_host.record.status == "succeeded"
        assert edited_host.is_restored

    def test_deployment_after_repair_changes_nothing(self, edited_host: EditedHost) -> None:
        assert (edited_host.again.changes, edited_host.again.operations) == (0, [])


CLOUD_INIT = "/etc/ssh/sshd_config.d/50-cloud-init.conf"
YES = "PasswordAuthentication yes\\nPermitRootLogin yes\\nKbdInteractiveAuthentication yes\\n"


class TestSshd:
    """Settings that a cloud image or an administrator has beside ours."""

    @pytest.fixture
    def host(self, deployed: DeployedHost) -> Iterator[DeployedHost]:
        deployed.inside("cp /etc/ssh/sshd_config /run/sshd_config")
        try:
            yield deployed
        finally:
            deployed.inside(f"cp /run/sshd_config /etc/ssh/sshd_config; rm -f {CLOUD_INIT}")

    def test_sshd_settings_of_others_do_not_override_ours(self, host: DeployedHost) -> None:
        host.inside(f"printf '{YES}Match User deploy\\n{YES}' >{CLOUD_INIT}")
        host.inside(f"sed -i '1i {YES}' /etc/ssh/sshd_config")
        assert host.gate()["ok"]
        assert host.plan().changing == []
        said = host.inside("sshd -T -C user=deploy,host=x,addr=10.0.0.1").splitlines()
        assert {"permitrootlogin no", "passwordauthentication no"} <= set(said)

    def test_overriding_sshd_settings_are_reported(self, host: DeployedHost) -> None:
        host.inside(f"sed -i '1i Match User deploy\\n{YES}Match all' /etc/ssh/sshd_config")
        (detail,) = (each["detail"] for each in host.gate()["checks"] if not each["ok"])
        assert "/etc/ssh/sshd_config:2: passwordauthentication yes for Match User deploy" in detail
        operations = {operation.name: operation.diff for operation in host.plan().changing}
        assert list(operations) == ["Dead-man timer | armed", "SSH | ssh.service"]
        assert any("for Match User deploy" in line for line in operations["SSH | ssh.service"])


RECEIVER = """
import http.server, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with open(sys.argv[1], "ab") as file:
            file.write(body + b"\\n")
        self.send_response(204)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 8999), Receiver).serve_forever()
"""


@contextmanager
def received_alerts(host: DeployedHost) -> Iterator[Callable[[str], str]]:
    """Run a receiver of alerts; yield a function that waits for a message with this text."""
    folder, received = "/run/systemd/system/master-controller.service.d", "/run/alerts"
    again = "systemctl daemon-reload && systemctl restart master-controller.service"
    host.inside(
        f"set -e; echo json://127.0.0.1:8999/ >/run/alert-urls; touch {received}; mkdir {folder}\n"
        f"printf '[Service]\\nLoadCredential=alert-urls:/run/alert-urls\\n' >{folder}/alerts.conf\n"
        f"systemd-run -q --unit=receiver python3 -c {shlex.quote(RECEIVER)} {received}\n{again}"
    )

    def await_message(text: str) -> str:
        until = 'until grep -F "$1" "$2"; do sleep 0.2; done'
        return host.inside(f"timeout 600 sh -c '{until}' sh {shlex.quote(text)} {received}")

    try:
        yield await_message
    finally:
        host.inside(f"rm -r {folder} /run/alert-urls {received}; systemctl stop receiver; {again}")


class TestAlerts:
    def test_opened_vm_isolation_raises_an_alert(self, deployed: DeployedHost) -> None:
        opened = [each for each in KERNEL if "isolated" in each.command or "flush" in each.command]
        assert len(opened) == 2
        with received_alerts(deployed) as await_message:
            for each in opened:
                began = time.monotonic()
                deployed.inside(each.command)
                said = await_message(each.problem.removeprefix("slots: "))
                print(f"{each.command}: told after {time.monotonic() - began:.0f} s")
                assert "[critical]" in said
                assert "vm isolation" in said
        assert deployed.deploy().operations == [each.operation for each in opened]
        assert not deployed.plan().changing


class TestWatch:
    def test_hung_watch_process_is_reported_and_restarted(self, deployed: DeployedHost) -> None:
        unit, report = "polydev-network-watch.service", "/run/polydev/network.json"
        deployed.inside(
            f"systemctl kill --signal=STOP {unit} && "
            f'sed -i \'s/"at": [0-9.]*/"at": -100/\' {report}'
        )
        drift = verb("drift", "--json")
        assert drift.status == 2
        (found,) = json.loads(drift.stdout)["operations"]
        assert found["name"] == f"Watch of the network | {unit}"
        assert found["diff"][0].strip().startswith("- report of the watch: ")
        (check,) = (each for each in deployed.gate()["checks"] if not each["ok"])
        assert check["name"] == "watch"
        doctor = host_findings("host", gather(deployed.host.target))
        (problem,) = (each for each in doctor if each.name == "watch")
        assert problem.state == "problem"
        assert f"{unit} does not run, or hangs" in problem.found
        assert deployed.deploy().operations == [found["name"]]
        assert not deployed.plan().changing


class TestTargets:
    def test_target_repairs_only_its_part(self, deployed: DeployedHost) -> None:
        edit(deployed, (*CONTROLLERS, *IMAGES, FOLDER))
        controller = deployed.deploy(target="master-controller")
        images = deployed.deploy(target="vm-agent")
        rest = deployed.deploy()
        assert (controller.target, images.target) == ("master-controller", "vm-agent")
        assert controller.operations == [each.operation for each in CONTROLLERS]
        assert repairing_operations(IMAGES, images.operations) == images.operations != []
        assert rest.operations == [FOLDER.operation]

    def test_target_plans_only_its_operations(self, deployed: DeployedHost) -> None:
        parts = {
            target: {
                operation.name.partition(" | ")[0]
                for operation in deployed.plan(target=target).operations
            }
            for target in ("master-controller", "vm-agent")
        }
        assert parts["master-controller"] == {"Host tool", "Units", "Controller", "Templates"}
        assert parts["vm-agent"] == {"Host tool", "Images"}


class TestRestart:
    def test_restarted_host_is_complete_without_deployment(self, deployed: DeployedHost) -> None:
        before = deployed.listing()
        deployed.restart()
        assert deployed.listing() == before
        require_specs_passed(run_specs(deployed))
        assert deployed.plan().changing == []


# A user of the host who looks at every file that appears where all may write, as it appears.
WATCHER = """
import ctypes, os, struct
watched = {}
libc = ctypes.CDLL(None)
queue = libc.inotify_init()
for folder in ("/tmp", "/var/tmp", "/dev/shm"):
    # created, modified, its mode changed, closed, moved here
    watched[libc.inotify_add_watch(queue, folder.encode(), 0x18E)] = folder
print("watching", flush=True)
while data := os.read(queue, 4096):
    while data:
        number, _, _, length = struct.unpack_from("iIII", data)
        name = data[16 : 16 + length].rstrip(b"\\0").decode()
        data = data[16 + length :]
        try:
            with open(os.path.join(watched[number], name), "rb") as file:
                print(name, file.read(10_000), flush=True)
        except OSError as error:
            print(name, error.strerror, flush=True)
"""


@contextmanager
def watched(host: DeployedHost) -> Iterator[Callable[[], str]]:
    """Watch the host as another user; yield a function that returns what the user saw."""
    seen = "/run/watcher-saw"
    program = shlex.quote(WATCHER)
    nobody = "setpriv --reuid=nobody --regid=nogroup --clear-groups"
    pid = host.inside(f"{nobody} python3 -c {program} >{seen} 2>&1 </dev/null & echo $!")

    def await_word(word: str) -> None:
        host.inside(f"timeout 600 sh -c 'until grep -q {word} {seen}; do sleep 0.1; done'")

    def all_seen() -> str:
        host.inside("touch /tmp/the-last && rm /tmp/the-last")
        await_word("the-last")
        return host.inside(f"cat {seen}")

    try:
        await_word("watching")
        yield all_seen
    finally:
        host.inside(f"kill {pid}; rm {seen}")


class TestSecrets:
    def test_secret_reaches_the_service_and_is_shown_nowhere(
        self, deployed: DeployedHost, tmp_path: Path
    ) -> None:
        secret = tmp_path / "jwt-secret"
        secret.write_text("correct horse battery staple, and more")
        other = replace(deployed, data={"secrets": {"jwt-secret": str(secret)}})
        planned = other.plan(target="master-controller")
        changes = [(operation.name, operation.diff) for operation in planned.changing]
        with watched(deployed) as seen:
            record = other.deploy(target="master-controller")
            found = seen()
        assert "pyinfra" not in found, "uploads pass through a folder that everybody may write to"
        assert "horse" not in found
        path = "/etc/master-controller/secrets/jwt-secret"
        assert deployed.inside(f"stat -c '%a %U' {path}") == "600 root"
        credential = "/run/credentials/master-controller.service/jwt-secret"
        assert deployed.inside(f"cat {credential}") == secret.read_text()
        told = f"{changes} {(deployed.logs / f'deployment-{record.id}.log').read_text()}"
        assert "jwt-secret" in told
        assert "horse" not in told

        deployed.deploy(target="master-controller")
        assert deployed.inside(f"ls {path} 2>&1; true").endswith("No such file or directory")
        assert not deployed.plan().changing


class TestWrongInventory:
    @pytest.mark.parametrize(
        ("line", "key"),
        [
            ("slots = 'many'", "slots"),
            ("slotz = 4", "slotz"),
            ("controller_listen = '4000'", "controller_listen"),
        ],
    )
    def test_wrong_value_is_reported_with_host_and_key(
        self, deployed: DeployedHost, tmp_path: Path, line: str, key: str
    ) -> None:
        changed = variant(deployed, tmp_path, values(line))
        with pytest.raises(ConfigError) as caught:
            describe(changed.project)
        assert f"inventory: lab-{deployed.lab.name}: " in caught.value.message
        assert key in caught.value.message
        assert caught.value.hint

    @pytest.mark.parametrize(
        ("line", "key"),
        [
            ("secrets = {'jwt-secret': '/nowhere/jwt'}", "secrets.jwt-secret"),
            (f"image = '{'0' * 64}'", "image"),
        ],
    )
    def test_missing_local_files_are_found_while_planning(
        self, deployed: DeployedHost, tmp_path: Path, line: str, key: str
    ) -> None:
        changed = variant(deployed, tmp_path, values(line))
        with pytest.raises(ConfigError) as caught:
            changed.plan()
        assert key in caught.value.message

    def test_unknown_target_is_refused_with_hint(self, deployed: DeployedHost) -> None:
        done = verb("deploy", "--target", "controller", "--json")
        assert done.status == 1
        said = json.loads(done.stdout)
        assert said["message"] == "no such target: controller"
        assert "master-controller" in said["hint"]

    @pytest.mark.parametrize("name", ["deploy", "drift", "deployments"])
    def test_missing_lab_is_reported_with_hint(self, deployed: DeployedHost, name: str) -> None:
        done = verb(name, "--json", POLYDEV_LAB=NOBODYS_LAB)
        assert done.status == 1
        said = json.loads(done.stdout)
        assert "inventory/lab.py" in said["message"]
        assert "./inv lab.up" in said["hint"]
        assert "Traceback" not in done.stderr


def values(lines: str) -> Callable[[Path], None]:
    """A change that sets values for all hosts of a checkout's lab inventory."""

    def write(root: Path) -> None:
        with (root / "inventory/group_data/lab.py").open("a") as file:
            file.write(f"{lines}\n")

    return write
