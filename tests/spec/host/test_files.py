"""Files of a deployed host: accounts, modes, secrets, releases, the golden link, SSH."""

from __future__ import annotations

import json
import re

import pytest
from testinfra.host import Host

from tests.spec.host.conftest import Site

CONTROLLER = "polydev-controller"
STORE = "/var/lib/firecracker/snapshots/base"
CURRENT = "/opt/master-controller/current"
MODES = (
    ("/opt/polydev-ai/bin/polydev-host", "755 root root"),
    ("/opt/polydev-ai/backups", "700 root root"),
    ("/opt/polydev-ai/deployments", "755 root root"),
    ("/opt/master-controller", "755 root root"),
    ("/opt/master-controller/releases", "755 root root"),
    ("/etc/polydev", "755 root root"),
    ("/etc/polydev/host.json", "644 root root"),
    ("/etc/polydev/firewall.nft", "644 root root"),
    ("/etc/master-controller", f"750 root {CONTROLLER}"),
    ("/etc/master-controller/config.yaml", f"640 root {CONTROLLER}"),
    ("/etc/master-controller/secrets", "700 root root"),
    ("/var/lib/master-controller", f"700 {CONTROLLER} {CONTROLLER}"),
    (STORE, "755 root root"),
    ("/var/lib/microvm", "755 root root"),
    ("/run/polydev/accelerator.json", "644 root root"),
)
SSHD = {
    "permitrootlogin": "no",
    "passwordauthentication": "no",
    "kbdinteractiveauthentication": "no",
    "permitemptypasswords": "no",
    "pubkeyauthentication": "yes",
    "clientaliveinterval": "5",
    "clientalivecountmax": "6",
}
DEPLOYMENT_ID = r"\d{8}_\d{6}-[0-9a-f]{4,40}(-dirty)?"


def test_users_have_no_login(host: Host, site: Site) -> None:
    names = [CONTROLLER, *map(site.vm_user, site.slots)]
    entries = [line.split(":") for line in host.check_output("getent passwd").splitlines()]
    users = {name: rest for name, *rest in entries if name in names}
    assert set(users) == set(names)
    wrong = [name for name, (_, uid, *_) in users.items() if int(uid) >= 1000]
    assert not wrong, "no system users"
    assert {rest[-1] for rest in users.values()} == {"/usr/sbin/nologin"}
    shadow = [line.split(":") for line in host.check_output("getent shadow").splitlines()]
    assert {word[:1] for name, word, *_ in shadow if name in names} <= {"!", "*"}, "have passwords"


def test_users_are_in_their_own_group_only(host: Host, site: Site) -> None:
    names = [CONTROLLER, *map(site.vm_user, site.slots)]
    for name in names:
        assert host.check_output(f"id -nG {name}") == name


def test_slot_folders_belong_to_controller_and_their_vm_group(host: Host, site: Site) -> None:
    found = host.check_output("stat -c '%n %a %U %G' /var/lib/microvm/*").splitlines()
    wanted = [
        f"/var/lib/microvm/{slot} 2750 {CONTROLLER} {site.vm_user(slot)}" for slot in site.slots
    ]
    assert set(wanted) <= set(found)


@pytest.mark.parametrize(("path", "expected"), MODES, ids=[path for path, _ in MODES])
def test_mode_and_owner(host: Host, path: str, expected: str) -> None:
    assert host.check_output(f"stat -c '%a %U %G' {path}") == expected


def test_secrets_are_readable_by_root_only(host: Host) -> None:
    found = host.check_output(
        "find /etc/master-controller/secrets -type f -printf '%m %u %g %p\\n'"
    )
    wrong = [line for line in found.splitlines() if not line.startswith("600 root root ")]
    assert not wrong


def test_no_secret_is_in_the_units_or_the_configuration(host: Host) -> None:
    units = host.check_output("systemctl cat master-controller.service")
    assert "LoadCredential" in units or not host.file("/etc/master-controller/secrets").listdir()
    assert not re.search(r"(?im)^\s*(Environment=.*)?\w*(secret|password|token)\w*\s*[=:]", units)
    config = host.check_output("cat /etc/master-controller/config.yaml")
    assert not re.search(r"(?im)^\s*\w*(secret|password)\w*\s*:", config)


def test_host_tool_runs(host: Host) -> None:
    lines = host.check_output("head -c 64 /opt/polydev-ai/bin/polydev-host | head -n 1")
    assert lines == "#!/usr/bin/python3 -I"
    assert host.run("/opt/polydev-ai/bin/polydev-host lock show").rc == 0


class TestRelease:
    def test_current_link_names_a_complete_release(self, host: Host) -> None:
        target = host.check_output(f"readlink {CURRENT}")
        assert re.fullmatch(f"releases/{DEPLOYMENT_ID}", target)
        release = json.loads(host.check_output(f"cat {CURRENT}/release.json"))
        assert f"releases/{release['id']}" == target

    def test_service_cannot_change_the_release(self, host: Host) -> None:
        folder = host.check_output(f"readlink -f {CURRENT}")
        found = host.check_output(
            f"find {folder} \\( -not -user root -o -perm /022 -not -type l \\) | head"
        )
        assert found == ""

    def test_files_of_release_are_as_installed(self, host: Host) -> None:
        script = (
            "import hashlib, json, os, sys\n"
            "root = sys.argv[1]\n"
            "for line in open(os.path.join(root, 'files.jsonl')):\n"
            "    entry = json.loads(line)\n"
            "    path = os.path.join(root, entry['path'])\n"
            "    if 'sha256' not in entry or os.path.islink(path):\n"
            "        continue\n"
            "    if hashlib.sha256(open(path, 'rb').read()).hexdigest() != entry['sha256']:\n"
            "        print(path)"
        )
        assert host.check_output("/usr/bin/python3 -c %s %s", script, CURRENT) == ""

    def test_database_belongs_to_the_service(self, host: Host) -> None:
        """The mode of its folder, which is among those above, keeps others out."""
        found = host.check_output("stat -c %U /var/lib/master-controller/controller.sqlite3*")
        assert set(found.split()) == {CONTROLLER}


class TestGoldenImage:
    def test_link_names_a_promotion(self, host: Host) -> None:
        target = host.check_output(f"readlink {STORE}/golden-rootfs.ext4")
        assert re.fullmatch(r"promotions/\d{6}/rootfs\.ext4", target)

    def test_golden_image_is_complete_and_verified(self, host: Host) -> None:
        folder = host.check_output(f"dirname $(readlink -f {STORE}/golden-rootfs.ext4)")
        record = json.loads(host.check_output(f"cat {folder}/record.json"))
        assert folder == f"{STORE}/images/{record['digest']}"
        assert record["verification"]["passed"] is True
        for name, entry in record["files"].items():
            size = int(host.check_output(f"stat -c %s {folder}/{name}"))
            assert size == entry["sizeBytes"], name


def test_sshd_settings(host: Host) -> None:
    said = host.check_output("sshd -T")
    settings = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    assert {key: settings[key] for key in SSHD} == SSHD


def test_no_deployment_holds_the_host(host: Host) -> None:
    """SSH access was confirmed, and no restore is pending."""
    assert host.run("systemctl is-active polydev-deadman.timer").rc != 0
    assert not host.file("/opt/polydev-ai/restore-pending.json").exists
    reach = json.loads(host.check_output("cat /opt/polydev-ai/reach.json"))
    assert re.fullmatch(r"[0-9a-f]{16}", reach["confirmed"])
