"""The image at rest: what must lie in the root filesystem, and what must not."""

from __future__ import annotations

import re

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.offline

SERVICES = ["systemd-networkd", "polydev-agent", "polydev-vnc", "polydev-desktop"]
SERVICES += ["polydev-novnc", "polydev-browser"]


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_enabled(host: Host, name: str) -> None:
    assert host.service(f"{name}.service").is_enabled, f"{name}.service is not enabled"


@pytest.mark.parametrize("name", [*SERVICES[1:], "polydev-identity"])
def test_service_has_begun_when_it_counts_as_started(host: Host, name: str) -> None:
    """Otherwise the next program could find a process that is not the service's yet."""
    unit = host.file(f"/etc/systemd/system/{name}.service").content_string
    assert re.search("^Type=(exec|notify)$", unit, re.MULTILINE), f"{name} is of Type=simple"


@pytest.mark.parametrize("name", SERVICES[1:])
def test_service_survives_a_failed_start_of_another(host: Host, name: str) -> None:
    """systemd gives up whatever requires a service that fails, though that one is tried again."""
    unit = host.file(f"/etc/systemd/system/{name}.service").content_string
    assert "Restart=always" in unit, f"{name} does not come back"
    assert not re.search("^(Requires|BindsTo|Requisite)=.*polydev-", unit, re.MULTILINE)


@pytest.mark.parametrize("name", ["chromium", "tigervnc-standalone-server", "systemd", "python3"])
def test_package_is_installed(host: Host, name: str) -> None:
    assert host.package(name).is_installed


def test_no_ssh_daemon(host: Host) -> None:
    assert not host.package("openssh-server").is_installed
    assert not host.file("/usr/sbin/sshd").exists


def test_root_has_no_password(host: Host) -> None:
    assert host.user("root").password[:1] in ("!", "*"), "root is not locked"


def test_desktop_user_is_unprivileged(host: Host) -> None:
    user = host.user("browser")
    assert user.exists
    assert user.uid == 1000
    assert user.password[:1] in ("!", "*")
    assert not set(user.groups) & {"root", "sudo", "adm", "disk"}


def test_network_is_static(host: Host) -> None:
    text = host.file("/etc/systemd/network/10-eth0.network").content_string
    assert "Address=172.16.0.2/30" in text, "eth0's address is not 172.16.0.2/30"
    assert "Gateway=172.16.0.1" in text
    assert "DHCP=no" in text


def test_resolvers_are_static(host: Host) -> None:
    file = host.file("/etc/resolv.conf")
    assert file.is_file, "there is no /etc/resolv.conf"
    assert not file.is_symlink, "/etc/resolv.conf is not a plain file"
    servers = [line.split()[1] for line in file.content_string.splitlines() if "nameserver" in line]
    assert servers == ["8.8.8.8", "8.8.4.4"], f"DNS servers are {servers}"


def test_image_has_no_identity_of_its_own(host: Host) -> None:
    assert host.file("/etc/machine-id").size == 0
    assert not host.file("/var/lib/systemd/random-seed").exists
    assert not host.file("/var/lib/dbus/machine-id").exists or (
        host.file("/var/lib/dbus/machine-id").is_symlink
    )


@pytest.mark.parametrize("name", ["claude", "codex", "copilot", "node"])
def test_provider_program_starts(host: Host, name: str) -> None:
    shown = host.run(f"HOME=/tmp COPILOT_PKG_CACHE_HOME=/tmp /usr/local/bin/{name} --version")
    assert shown.rc == 0, shown.stderr
    assert re.search(r"\d+\.\d+", shown.stdout)


def test_gemini_parses(host: Host) -> None:
    # Its start takes seconds even at rest, and it is the one that is only a script.
    assert host.file("/usr/local/bin/gemini").is_symlink
    checked = host.run("/usr/local/bin/node --check $(readlink -f /usr/local/bin/gemini)")
    assert checked.rc == 0, checked.stderr


def test_agent_is_precompiled(host: Host) -> None:
    folder = "/usr/lib/polydev-agent/polydev/agent"
    sources = host.run(f"find {folder} -maxdepth 1 -name '*.py'").stdout.split()
    compiled = host.run(f"find {folder}/__pycache__ -name '*.pyc'").stdout.split()
    assert sources
    assert len(sources) == len(compiled)


@pytest.mark.parametrize("name", ["home-browser.mount", "tmp.mount"])
def test_what_users_are_given_lies_in_memory(host: Host, name: str) -> None:
    unit = host.file(f"/etc/systemd/system/{name}").content_string
    assert "Type=tmpfs" in unit
    assert "size=" in unit, "it may take all of the VM's memory"
    assert host.file(f"/etc/systemd/system/local-fs.target.requires/{name}").exists


def test_the_home_on_the_disk_is_empty(host: Host) -> None:
    assert host.run("find /home/browser -mindepth 1 2>/dev/null").stdout == ""


def test_logins_have_their_units_and_their_browser(host: Host) -> None:
    for unit in ("polydev-login@", "polydev-login-status@", "polydev-credentials@"):
        service = host.file(f"/etc/systemd/system/{unit}.service").content_string
        assert "User=browser" in service, f"{unit}.service has more than its user's rights"
    socket = host.file("/etc/systemd/system/polydev-credentials.socket").content_string
    assert "SocketMode=0600" in socket, "others than root reach credentials"
    assert host.file("/usr/lib/polydev-agent/bin/xdg-open").mode & 0o111


def test_no_set_uid_program_that_gives_root_a_shell(host: Host) -> None:
    assert not host.package("sudo").is_installed


def test_no_package_index_or_log_is_shipped(host: Host) -> None:
    assert host.run("find /var/lib/apt/lists /var/log -type f").stdout.split() == []


def test_modules_of_the_root_are_there(host: Host) -> None:
    found = host.run("find /usr/lib/modules -name '*.ko'").stdout
    for name in ("virtio_net.ko", "virtio_blk.ko", "ext4.ko"):
        assert name in found
