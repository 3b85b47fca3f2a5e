"""Real labs: booted, logged in to, restarted, killed, interrupted, ended."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polydev.lab import (
    Lab,
    LabError,
    down,
    find,
    labs,
    lifecycle,
    logs,
    reset,
    restart,
    run_inside,
    save,
    shell,
    ssh_argv,
    up,
)
from polydev.lab.container import cgroup_of, console_hint, power_off
from polydev.processes import Completed, run, spawn
from polydev.progress import Steps
from polydev.settings import Settings
from tests.integration.conftest import leftovers

# Links are the machine's: another run of these tests must not meet them.
NAME = f"t{os.getpid() % 1_000_000}"
PATIENCE_SECONDS = 300.0
UP = """
import sys
from polydev.lab import up
from polydev.progress import Steps
from polydev.settings import Settings
up(sys.argv[1], Settings.from_environment(), Steps())
"""


@pytest.fixture(scope="module")
def lab(settings: Settings) -> Iterator[Lab]:
    """One lab for every test that leaves it running."""
    yield up(f"{NAME}a", settings, Steps())
    down(f"{NAME}a", settings)


@pytest.fixture
def own(settings: Settings) -> Iterator[Callable[[str], Lab]]:
    """Return a function that starts labs for one test."""
    names = []

    def make(letter: str) -> Lab:
        names.append(NAME + letter)
        return up(NAME + letter, settings, Steps())

    yield make
    for name in names:
        down(name, settings)


def machines_network() -> dict[str, object]:
    """Return this machine's network without links of labs, since others may be running."""
    links = json.loads(run(["ip", "-json", "address"]).stdout)
    routes = json.loads(run(["ip", "-json", "route", "show", "table", "all"]).stdout)
    forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    firewall = run(["nft", "list", "ruleset"]).stdout if shutil.which("nft") else ""
    return {
        "addresses": [
            (link["ifname"], link["flags"], [each["local"] for each in link["addr_info"]])
            for link in links
            if not link["ifname"].startswith("lab-")
        ],
        # Routes that a router announced expire at a time that counts down.
        "routes": [
            {key: value for key, value in route.items() if key != "expires"}
            for route in routes
            if not str(route.get("dev")).startswith("lab-")
        ],
        "forwarding": forwarding,
        "firewall": firewall,
    }


def boot_id(lab: Lab) -> str:
    return run_inside(lab, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout


def assert_nothing_left_of(lab: Lab) -> None:
    """Fail if a process, mount, link, control group or file of the lab is left."""
    assert leftovers(lab.folder) == []
    assert not Path("/sys/class/net", lab.veth).exists()
    assert not cgroup_of(lab).exists()
    assert not lab.folder.exists()


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)


class TestLogin:
    def test_deploy_has_sudo_by_key(self, lab: Lab) -> None:
        said = run(ssh_argv(lab, ["sh", "-c", "whoami; sudo -n whoami; hostname"])).stdout
        assert said.split() == ["deploy", "root", lab.name]

    def test_root_is_refused(self, lab: Lab) -> None:
        authorized = (
            "install -D -m 600 /home/deploy/.ssh/authorized_keys /root/.ssh/authorized_keys"
        )
        run_inside(lab, ["sh", "-c", authorized])
        done = run(ssh_argv(lab, ["true"], user="root"), check=False)
        assert done.status == 255
        assert "Permission denied" in done.stderr

    def test_password_login_is_off(self, lab: Lab) -> None:
        words = ssh_argv(lab, ["true"])
        words[1:1] = ["-o", "PubkeyAuthentication=no"]
        done = run(words, check=False)
        assert done.status == 255
        assert "Permission denied (publickey)." in done.stderr

    def test_paramiko_connects_with_known_host_key(self, lab: Lab) -> None:
        paramiko = importlib.import_module("paramiko")
        with paramiko.SSHClient() as client:
            client.load_host_keys(str(lab.known_hosts))
            client.set_missing_host_key_policy(paramiko.RejectPolicy())
            client.connect(
                lab.address,
                username=lab.user,
                key_filename=str(lab.key),
                look_for_keys=False,
                allow_agent=False,
                banner_timeout=PATIENCE_SECONDS,
                auth_timeout=PATIENCE_SECONDS,
            )
            _, out, _ = client.exec_command("sudo -n id -u")
            assert out.read() == b"0\n"


class TestInside:
    def test_no_unit_failed(self, lab: Lab) -> None:
        run_inside(lab, ["systemctl", "is-system-running", "--wait"])

    def test_namespaces_bridges_and_nftables_work(self, lab: Lab) -> None:
        script = """
            ip netns add slot
            ip link add br-try type bridge
            ip link add up0 type veth peer name up1 netns slot
            ip link set up0 master br-try up
            bridge link set dev up0 isolated on
            ip -n slot tuntap add tap0 mode tap user deploy
            ip netns exec slot sysctl -qw net.ipv4.ip_forward=1
            sysctl -qw net.ipv4.ip_forward=1
            ip -n slot -brief link show tap0
            ip netns delete slot
            ip link delete br-try
        """
        before = machines_network()
        assert "tap0" in run_inside(lab, ["sh", "-eu", "-c", script]).stdout
        assert machines_network() == before

    def test_hardened_units_and_credentials(self, lab: Lab) -> None:
        properties = (
            *("DynamicUser=yes", "SetCredential=word:sesame", "ProtectSystem=strict"),
            *("ProtectKernelTunables=yes", "PrivateDevices=yes", "PrivateUsers=yes"),
            *("StateDirectory=try", "CapabilityBoundingSet=", "MemoryMax=100M"),
            *(
                "SystemCallFilter=@system-service",
                "RestrictNamespaces=yes",
                "ProtectProc=invisible",
            ),
        )
        words = ["systemd-run", "--quiet", "--pipe", "--wait"]
        words += [f"--property={each}" for each in properties]
        words += ["sh", "-c", "cat $CREDENTIALS_DIRECTORY/word; touch /etc/x || echo -refused"]
        assert run_inside(lab, words).stdout == "sesame-refused\n"

    def test_ip_address_filters_of_units_work(self, lab: Lab) -> None:
        ping = ["ping", "-c1", lab.gateway]
        words = ["systemd-run", "--quiet", "--wait", "--collect"]
        run_inside(lab, [*words, *ping, "-W60"])  # that long even if ping itself stands still
        denied = [*words, "--property=IPAddressDeny=any", *ping, "-W1"]
        cut_off = run_inside(lab, denied, check=False)
        assert cut_off.status != 0

    def test_default_route_exists_after_boot(self, lab: Lab) -> None:
        assert "dev uplink0" in run_inside(lab, ["ip", "route", "get", "192.0.2.200"]).stdout

    def test_devices_have_the_modes_of_a_real_host(self, lab: Lab) -> None:
        machines = Path("/dev/net/tun").stat().st_mode
        assert run_inside(lab, ["stat", "-c", "%a", "/dev/net/tun"]).stdout == "666\n"
        assert Path("/dev/net/tun").stat().st_mode == machines

    def test_shell_has_a_terminal(self, lab: Lab) -> None:
        said = run(shell(lab, is_terminal=True), input="tty; echo $((6 * 7)); exit\n").stdout
        assert "/dev/pts/" in said
        assert "\n42" in said

    def test_shell_runs_piped_commands_and_returns_their_status(self, lab: Lab) -> None:
        piped = shell(lab, is_terminal=False)
        done = run(piped, input="echo $((6 * 7)); tty\n(exit 3)\n", check=False)
        assert (done.stdout, done.status) == ("42\nnot a tty\n", 3)
        assert run(piped, input="").stdout == ""

    def test_logs_contain_journal_and_console(self, lab: Lab) -> None:
        run_inside(lab, ["logger", "a word for the journal"])
        run_inside(lab, ["journalctl", "--sync"])  # journald may not have read it yet
        said = logs(lab)
        assert "a word for the journal" in said.journal
        assert "Reached target" in said.console


class TestLife:
    def test_up_of_a_running_lab_returns_it(self, lab: Lab, settings: Settings) -> None:
        before = boot_id(lab)
        assert up(lab.name, settings, Steps()) == lab == find(lab.name, settings)
        assert boot_id(lab) == before

    def test_two_labs_run_side_by_side(
        self, lab: Lab, own: Callable[[str], Lab], settings: Settings
    ) -> None:
        other = own("b")
        assert {lab.name, other.name} <= {each.name for each in labs(settings)}
        assert len({lab.address, lab.gateway, other.address, other.gateway}) == 4
        for each in (lab, other):
            assert run(ssh_argv(each, ["hostname"])).stdout == f"{each.name}\n"
        assert lab.key.read_text() != other.key.read_text()

    def test_restart_keeps_files_and_keys(
        self, own: Callable[[str], Lab], settings: Settings
    ) -> None:
        first = own("c")
        before = boot_id(first)
        run_inside(first, ["sh", "-c", "echo kept >/etc/kept; ip link add br-gone type bridge"])
        again = restart(first.name, settings)
        assert again.running()
        assert boot_id(again) != before
        said = run(ssh_argv(again, ["sh", "-c", "cat /etc/kept; ip -brief link"])).stdout
        assert "kept" in said
        assert "br-gone" not in said

    def test_reset_restores_exactly_the_saved_files(
        self, own: Callable[[str], Lab], settings: Settings
    ) -> None:
        lab = own("s")
        with pytest.raises(LabError, match="no files of lab"):
            reset(lab.name, settings)
        run_inside(lab, ["sh", "-c", "echo saved >/etc/saved; echo saved >/etc/motd"])
        saved = save(lab.name, settings)
        run_inside(saved, ["sh", "-c", "rm /etc/saved; echo later | tee /etc/motd >/etc/later"])
        again = reset(lab.name, settings)
        said = run(ssh_argv(again, ["cat", "/etc/saved", "/etc/motd"])).stdout
        assert said.split() == ["saved", "saved"]
        assert run_inside(again, ["test", "-e", "/etc/later"], check=False).status == 1
        with pytest.raises(LabError, match="were saved before"):
            save(lab.name, settings)

    def test_reboot_from_inside(self, own: Callable[[str], Lab]) -> None:
        lab = own("d")
        before = boot_id(lab)
        run_inside(lab, ["ip", "link", "add", "br-gone", "type", "bridge"])
        # The lab may go down before this program of it has ended.
        run_inside(lab, ["systemctl", "reboot"], check=False)
        script = "cat /proc/sys/kernel/random/boot_id; ip -brief link"
        show = ssh_argv(lab, ["sh", "-c", script], timeout_seconds=5)
        said = ""

        def rebooted() -> bool:
            nonlocal said
            done = run(show, check=False)
            said = done.stdout
            return done.status == 0 and not said.startswith(before)

        wait_until(rebooted, "a login after the reboot")
        assert "br-gone" not in said

    def test_powered_off_lab_keeps_files_and_boots_again(
        self, own: Callable[[str], Lab], settings: Settings
    ) -> None:
        lab = own("e")
        run_inside(lab, ["touch", "/etc/kept"])
        power_off(lab, PATIENCE_SECONDS)
        assert find(lab.name, settings) is None
        assert lab.name in [each.name for each in labs(settings)]
        with pytest.raises(LabError, match="does not run"):
            run_inside(lab, ["true"])
        run_inside(up(lab.name, settings, Steps()), ["test", "-e", "/etc/kept"])


class TestEnd:
    def test_down_leaves_nothing_behind(
        self, own: Callable[[str], Lab], settings: Settings
    ) -> None:
        before = machines_network()
        lab = own("f")
        assert machines_network() == before
        assert leftovers(lab.folder) != []
        assert down(lab.name, settings)
        assert_nothing_left_of(lab)
        assert machines_network() == before
        assert not down(lab.name, settings)

    def test_killed_lab_leaves_only_its_files(
        self, own: Callable[[str], Lab], settings: Settings
    ) -> None:
        lab = own("g")
        run_inside(lab, ["sh", "-c", "touch /etc/kept && sync"])
        os.kill(lab.pid, signal.SIGKILL)
        wait_until(lambda: not lab.running(), "the end of the first process")
        wait_until(lambda: leftovers(lab.folder) == [], "the end of all others")
        wait_until(lambda: not Path("/sys/class/net", lab.veth).exists(), "the link's end")
        run_inside(up(lab.name, settings, Steps()), ["test", "-e", "/etc/kept"])

    @pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
    def test_interrupted_up_leaves_nothing_behind(
        self, settings: Settings, sent: signal.Signals
    ) -> None:
        name = f"{NAME}h"
        environment = {"POLYDEV_STATE": str(settings.state), "POLYDEV_CACHE": str(settings.cache)}
        link = Path("/sys/class/net", f"lab-{name}")
        folder = settings.state / "labs" / name
        process = spawn([sys.executable, "-c", UP, name], env=environment)
        wait_until(link.exists, "the link")
        lab = Lab(name=name, folder=folder, root=folder, address="", gateway="")
        os.kill(process.pid, sent)
        process.wait(PATIENCE_SECONDS)
        if sent == signal.SIGKILL:  # nobody could clean up: down does
            down(name, settings)
            wait_until(lambda: leftovers(folder) == [], "the end of its child")
        assert_nothing_left_of(lab)

    def test_lab_without_ssh_reports_why(
        self,
        own: Callable[[str], Lab],
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        lab = own("i")
        run_inside(lab, ["systemctl", "mask", "ssh.service"])
        said = [""]

        def attempt(*words: Any, **options: Any) -> Completed:
            done = run(*words, **options)
            said.append(done.stderr)
            return done

        def until_refused() -> float:
            """The time, which is up once the lab has booted so far, however long that takes."""
            is_up = "Connection refused" in said[-1] and "Reached target" in console_hint(lab)
            return time.monotonic() + (lifecycle.LOGIN_SECONDS if is_up else 0)

        monkeypatch.setattr(lifecycle, "run", attempt)
        clock = SimpleNamespace(monotonic=until_refused, sleep=time.sleep)
        monkeypatch.setattr(lifecycle, "time", clock)
        with pytest.raises(LabError, match="Connection refused") as caught:
            restart(lab.name, settings)
        assert "Reached target" in (caught.value.hint or "")
        assert find(lab.name, settings) is None
        assert not Path("/sys/class/net", lab.veth).exists()

    def test_addresses_in_use_are_refused(
        self, own: Callable[[str], Lab], settings: Settings
    ) -> None:
        lab = own("j")
        power_off(lab, PATIENCE_SECONDS)
        taker = f"lab-{NAME}k"
        run(["ip", "link", "add", taker, "type", "veth"])
        try:
            run(["ip", "address", "add", f"{lab.gateway}/32", "dev", taker])
            with pytest.raises(LabError, match="other networks use the addresses"):
                up(lab.name, settings, Steps())
        finally:
            run(["ip", "link", "delete", taker])

    def test_name_of_lab_in_another_checkout_is_refused(
        self, lab: Lab, settings: Settings, tmp_path: Path
    ) -> None:
        elsewhere = replace(settings, state=tmp_path)
        with pytest.raises(LabError, match=f"another lab {lab.name} runs"):
            up(lab.name, elsewhere, Steps())
        assert not (tmp_path / "labs" / lab.name).exists()
        assert lab.running()
        run(ssh_argv(lab, ["true"]))
