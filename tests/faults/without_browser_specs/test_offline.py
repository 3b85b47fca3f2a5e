"""The image at rest: files that the root filesystem must and must not have."""

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
def test_service_type_is_exec_or_notify(host: Host, name: str) -> None:
    """Otherwise a program that is started next could find a process that is not ready yet."""
    unit = host.file(f"/etc/systemd/system/{name}.service").content_string
    assert re.search("^Type=(exec|notify)$", unit, re.MULTILINE), (
        f"{name}.service is not of Type=exec or notify"
    )


@pytest.mark.parametrize("name", SERVICES[1:])
def test_service_survives_a_failed_start_of_another(host: Host, name: str) -> None:
    """systemd gives up on units that require a failed service, though it restarts the service."""
    unit = host.file(f"/etc/systemd/system/{name}.service").content_string
    assert "Restart=always" in unit, f"{name}.service has no Restart=always"
    required = re.findall("^(?:Requires|BindsTo|Requisite)=.*polydev-.*", unit, re.MULTILINE)
    assert not required, f"{name}.service fails with another service: {'; '.join(required)}"


@pytest.mark.parametrize("name", ["chromium", "tigervnc-standalone-server", "systemd", "python3"])
def test_package_is_installed(host: Host, name: str) -> None:
    assert host.package(name).is_installed, f"package {name} is not installed"


def test_no_ssh_daemon(host: Host) -> None:
    assert not host.package("openssh-server").is_installed, "package openssh-server is installed"
    assert not host.file("/usr/sbin/sshd").exists, "the image has an SSH daemon: /usr/sbin/sshd"


def test_root_has_no_password(host: Host) -> None:
    assert host.user("root").password[:1] in ("!", "*"), "root has a password, or an empty one"


def test_desktop_user_is_unprivileged(host: Host) -> None:
    user = host.user("browser")
    assert user.exists, "there is no user browser"
    assert user.uid == 1000, f"the user browser has uid {user.uid}, not 1000"
    assert user.password[:1] in ("!", "*"), "the user browser has a password, or an empty one"
    groups = set(user.groups) & {"root", "sudo", "adm", "disk"}
    assert not groups, f"the user browser is in privileged groups: {', '.join(sorted(groups))}"


def test_network_is_static(host: Host) -> None:
    file = "/etc/systemd/network/10-eth0.network"
    text = host.file(file).content_string
    for line in ("Address=172.16.0.2/30", "Gateway=172.16.0.1", "DHCP=no"):
        assert line in text, f"{file} has no line {line}"


def test_resolvers_are_static(host: Host) -> None:
    file = host.file("/etc/resolv.conf")
    assert file.is_file, "/etc/resolv.conf is missing"
    assert not file.is_symlink, "/etc/resolv.conf is a link"
    servers = [line.split()[1] for line in file.content_string.splitlines() if "nameserver" in line]
    assert servers == ["8.8.8.8", "8.8.4.4"], f"DNS servers are {servers}"


def test_image_has_no_identity_of_its_own(host: Host) -> None:
    assert host.file("/etc/machine-id").size == 0, "/etc/machine-id is not empty"
    seed = host.file("/var/lib/systemd/random-seed")
    assert not seed.exists, "the image has a random seed: /var/lib/systemd/random-seed"
    dbus = host.file("/var/lib/dbus/machine-id")
    assert not dbus.exists or dbus.is_symlink, "/var/lib/dbus/machine-id is a file with an id"


@pytest.mark.parametrize("name", ["claude", "codex", "copilot", "node"])
def test_provider_program_starts(host: Host, name: str) -> None:
    shown = host.run(f"HOME=/tmp COPILOT_PKG_CACHE_HOME=/tmp /usr/local/bin/{name} --version")
    assert shown.rc == 0, f"{name} does not start: {shown.stderr.strip()}"
    assert re.search(r"\d+\.\d+", shown.stdout), f"{name} prints no version: {shown.stdout!r}"


def test_gemini_parses(host: Host) -> None:
    # Starting gemini takes seconds even at rest, and it is the only one that is just a script.
    assert host.file("/usr/local/bin/gemini").is_symlink, "/usr/local/bin/gemini is no link"
    checked = host.run("/usr/local/bin/node --check $(readlink -f /usr/local/bin/gemini)")
    assert checked.rc == 0, f"node cannot parse gemini: {checked.stderr.strip()}"


def test_agent_is_precompiled(host: Host) -> None:
    folder = "/usr/lib/polydev-agent/polydev/agent"
    sources = host.run(f"find {folder} -maxdepth 1 -name '*.py'").stdout.split()
    compiled = host.run(f"find {folder}/__pycache__ -name '*.pyc'").stdout.split()
    assert sources, f"there is no agent in {folder}"
    assert len(sources) == len(compiled), (
        f"only {len(compiled)} of the agent's {len(sources)} modules are compiled"
    )


@pytest.mark.parametrize("name", ["home-browser.mount", "tmp.mount"])
def test_home_and_tmp_are_in_memory(host: Host, name: str) -> None:
    unit = host.file(f"/etc/systemd/system/{name}").content_string
    assert "Type=tmpfs" in unit, f"{name} is no tmpfs: credentials would reach the disk"
    assert "size=" in unit, f"{name} has no size=: it may take all of the VM's memory"
    link = host.file(f"/etc/systemd/system/local-fs.target.requires/{name}")
    assert link.exists, f"local-fs.target does not require {name}"


def test_home_on_disk_is_empty(host: Host) -> None:
    files = host.run("find /home/browser -mindepth 1 2>/dev/null").stdout.split()
    assert not files, f"/home/browser has files, which the mount over it hides: {files[:3]}"


def test_login_units_and_browser_command_exist(host: Host) -> None:
    for unit in ("polydev-login", "polydev-login-status@", "polydev-credentials@"):
        service = host.file(f"/etc/systemd/system/{unit}.service").content_string
        assert "User=browser" in service, f"{unit}.service does not run as the user browser"
    for name in ("polydev-login.socket", "polydev-credentials.socket"):
        socket = host.file(f"/etc/systemd/system/{name}").content_string
        assert "SocketMode=0600" in socket, f"{name} has no SocketMode=0600"
    program = host.file("/usr/lib/polydev-agent/bin/xdg-open")
    assert program.mode & 0o111, f"{program.path} cannot be executed"


def test_sudo_is_not_installed(host: Host) -> None:
    assert not host.package("sudo").is_installed, "package sudo is installed"


def test_no_package_index_or_log_is_shipped(host: Host) -> None:
    files = host.run("find /var/lib/apt/lists /var/log -type f").stdout.split()
    assert not files, f"the image has package lists or logs: {', '.join(files[:3])}"


def test_kernel_modules_for_root_exist(host: Host) -> None:
    found = host.run("find /usr/lib/modules -name '*.ko'").stdout
    for name in ("virtio_net.ko", "virtio_blk.ko", "ext4.ko"):
        assert name in found, f"the kernel module {name} is missing below /usr/lib/modules"
