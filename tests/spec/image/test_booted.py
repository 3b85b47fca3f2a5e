"""The running guest, seen from inside: --hosts=console://…, or any testinfra backend."""

from __future__ import annotations

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.booted

UNITS = ["systemd-networkd", "polydev-agent", "polydev-identity", "polydev-vnc", "polydev-desktop"]
UNITS += ["polydev-novnc", "polydev-browser"]
# The agent has it start once the VM is ready.
LOGIN_UNIT = "polydev-login.service"
UNWANTED = ["dbus.service", "cron.service", "ssh.service", "getty@tty1.service"]
UNWANTED += ["systemd-logind.service", "serial-getty@ttyS0.service", "systemd-timesyncd.service"]


@pytest.fixture(scope="module")
def active_units(host: Host) -> set[str]:
    shown = host.run("systemctl list-units --state=active --plain --no-legend").stdout
    return {line.split()[0] for line in shown.splitlines() if line}


@pytest.fixture(scope="module")
def sockets(host: Host) -> str:
    return str(host.run("ss -Hltn").stdout)


@pytest.fixture(scope="module")
def processes(host: Host) -> str:
    return str(host.run("ps -eo user:20,args --no-headers").stdout)


def test_no_unit_failed(host: Host) -> None:
    failed = host.run("systemctl list-units --state=failed --plain --no-legend").stdout
    names = [line.split()[0] for line in failed.splitlines() if line]
    assert not names, f"units failed: {', '.join(names)}"


@pytest.mark.parametrize("name", UNITS)
def test_service_runs(active_units: set[str], name: str) -> None:
    assert f"{name}.service" in active_units, f"{name}.service is not active"


def test_services_have_no_start_limits(host: Host) -> None:
    """A slow guest keeps trying, and a browser that its user closes is started again each time."""
    names = " ".join(f"{name}.service" for name in UNITS)
    properties = "Id,TimeoutStartUSec,StartLimitIntervalUSec"
    shown = host.run(f"systemctl show -p {properties} {names}").stdout
    units = [dict(line.split("=", 1) for line in unit.splitlines()) for unit in shown.split("\n\n")]
    assert len(units) == len(UNITS), f"systemctl shows {len(units)} of {len(UNITS)} services"
    limited = [
        unit["Id"]
        for unit in units
        if unit["TimeoutStartUSec"] != "infinity" or unit["StartLimitIntervalUSec"] != "0"
    ]
    assert not limited, f"services have a start timeout or a start limit: {', '.join(limited)}"
    restarts = host.run("systemctl show -p Restart polydev-browser.service").stdout
    assert restarts.strip() == "Restart=always", f"polydev-browser.service has {restarts.strip()}"
    arguments = host.run("ps -C chromium -o args=").stdout
    assert "--ipc-connection-timeout=" in arguments, "chromium has no --ipc-connection-timeout"


def test_no_service_leaves_a_core_dump(host: Host) -> None:
    """A tool, the browser or the agent has credentials in its memory."""
    names = " ".join(
        f"{name}.service"
        for name in (*UNITS, "polydev-login", "polydev-login-status@x", "polydev-credentials@x")
    )
    shown = host.run(f"systemctl show -p LimitCORE {names}").stdout.split()
    assert set(shown) == {"LimitCORE=0"}, f"services may leave core dumps: {' '.join(shown)}"


def test_no_systemd_job_is_pending(host: Host) -> None:
    jobs = host.run("systemctl list-jobs --no-legend").stdout.splitlines()
    waiting = [job for job in jobs if LOGIN_UNIT not in job]
    assert not waiting, f"systemd still has jobs: {'; '.join(waiting)}"


def test_no_unit_unneeded_by_browser_vm_is_active(active_units: set[str]) -> None:
    unwanted = active_units & set(UNWANTED)
    assert not unwanted, f"services run that no browser VM needs: {', '.join(sorted(unwanted))}"
    timers = sorted(name for name in active_units if name.endswith(".timer"))
    assert not timers, f"timers are active: {', '.join(timers)}"


def test_kernel_does_not_wake_idle_guest(host: Host) -> None:
    names = ("stat_interval", "compaction_proactiveness", "dirty_writeback_centisecs")
    values = host.run("cd /proc/sys/vm && cat " + " ".join(names)).stdout.split()
    assert values == ["60", "0", "0"], (
        f"the kernel wakes an idle guest: vm.{{{','.join(names)}}} are {values}, not 60, 0, 0"
    )
    assert not host.file("/proc/pressure").exists, (
        "the kernel measures pressure (/proc/pressure is there): boot it with psi=0"
    )


def test_address_and_gateway(host: Host) -> None:
    address = host.run("ip -4 -brief address show dev eth0").stdout
    assert "172.16.0.2/30" in address, f"eth0 has {address.split()[2:] or 'no address'}"
    route = host.run("ip -4 route show default").stdout.strip()
    assert "via 172.16.0.1" in route, f"the default route is {route or 'missing'}"


def test_dns_settings(host: Host) -> None:
    text = host.file("/etc/resolv.conf").content_string
    servers = [line.split()[1] for line in text.splitlines() if line.startswith("nameserver")]
    assert servers == ["8.8.8.8", "8.8.4.4"], f"DNS servers are {servers}"
    hosts = [
        line
        for line in host.file("/etc/nsswitch.conf").content_string.splitlines()
        if line.startswith("hosts:")
    ]
    assert "dns" in " ".join(hosts), f"/etc/nsswitch.conf does not look up names in DNS: {hosts}"


@pytest.mark.parametrize("port", [8080, 5901, 6080])
def test_port_listens_on_all_interfaces(sockets: str, port: int) -> None:
    listening = sockets.split()
    assert f"0.0.0.0:{port}" in listening or f"*:{port}" in listening, (
        f"nothing listens on port {port} of all interfaces"
    )


def test_no_other_port_listens(sockets: str) -> None:
    # Another spec starts a login, whose tool listens on loopback for the browser.
    addresses = {line.split()[3].rpartition(":")[::2] for line in sockets.splitlines()}
    ports = {port for address, port in addresses if not address.startswith("127.")}
    others = ports - {"8080", "5901", "6080"}
    assert not others, f"programs listen on other ports, too: {', '.join(sorted(others))}"


def test_desktop_runs_unprivileged(processes: str) -> None:
    for program in ("Xtigervnc", "websockify", "bspwm", "chromium"):
        owners = {line.split()[0] for line in processes.splitlines() if program in line}
        assert owners == {"browser"}, f"{program} runs as {owners or 'nobody'}"


def test_chromium_keeps_its_sandbox(processes: str) -> None:
    assert "--no-sandbox" not in processes, "chromium runs with --no-sandbox"
    assert "--type=zygote" in processes, "chromium runs without a zygote: its sandbox is off"
    assert "--type=renderer" in processes, "chromium has no renderer: it shows no page"


def test_renderers_have_their_own_namespaces(host: Host) -> None:
    script = (
        "for p in $(pgrep -f -- '[-]-type=renderer'); do "
        "own=$(readlink /proc/$p/ns/pid) || continue; "  # it has ended
        "[ $own != $(readlink /proc/1/ns/pid) ] || echo $p; done"
    )
    pids = host.run(script).stdout.split()
    assert not pids, f"chromium's renderers share the guest's PID namespace: {', '.join(pids)}"


@pytest.mark.parametrize("folder", ["/home/browser", "/tmp"])
def test_home_and_tmp_are_in_memory(host: Host, folder: str) -> None:
    kind = host.run(f"stat -f -c %T {folder}").stdout.strip()
    assert kind == "tmpfs", f"{folder} is on {kind}, not in memory: credentials reach the disk"
    kib = int(host.run(f"df --output=size -k {folder}").stdout.split()[-1])
    assert kib <= 512 * 1024, f"{folder} may take {kib} KiB of memory; the limit is 524288"


@pytest.mark.parametrize("path", ["/run/polydev-credentials", "/run/polydev-login-server"])
def test_only_root_reaches_credentials_and_logins(host: Host, path: str) -> None:
    mode = host.run(f"stat -c '%U %a' {path}").stdout.strip()
    assert mode == "root 600", f"{path} has owner and mode {mode or 'unknown'}, not root 600"


@pytest.mark.parametrize("address", ["127.0.0.1", "172.16.0.2"])
def test_agent_refuses_login_requests_from_inside_the_vm(host: Host, address: str) -> None:
    said = host.run(
        "python3 -I -S -c 'import http.client, sys; "
        f'asking = http.client.HTTPConnection("{address}", 8080); '
        'asking.request("GET", "/login/claude"); print(asking.getresponse().status)\''
    )
    assert said.stdout.strip() == "403", (
        f"the agent answers {said.stdout.strip() or said.stderr.strip()}, not 403, to a program of "
        f"the VM that asks {address}:8080 about a login"
    )


def test_root_has_free_space(host: Host) -> None:
    free_kib = int(host.run("df --output=avail -k /").stdout.split()[-1])
    assert free_kib > 512 * 1024, f"the root filesystem has only {free_kib} KiB free"


def test_root_is_writable(host: Host) -> None:
    written = host.run("touch /var/tmp/polydev && rm /var/tmp/polydev")
    assert written.rc == 0, f"the root filesystem cannot be written to: {written.stderr.strip()}"


def test_machine_id_is_fresh(host: Host) -> None:
    machine_id = host.file("/etc/machine-id").content_string.strip()
    assert len(machine_id) == 32, f"/etc/machine-id has no fresh id: {machine_id!r}"


def test_console_shows_no_emergency(host: Host) -> None:
    states = host.run("systemctl is-active emergency.target rescue.target")
    assert states.rc != 0, "systemd is in its emergency or rescue mode"
