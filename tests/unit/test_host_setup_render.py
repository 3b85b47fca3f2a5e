"""Every file of a whole host, as its inventory describes it: rendered, read back, compared."""

from __future__ import annotations

import configparser
import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from polydev.errors import ConfigError
from polydev.host_setup import inventory_network_checks, network
from polydev.host_setup.config_check import check_controller_config
from polydev.host_setup.deadman import access_hash
from polydev.host_setup.host_files_and_units import (
    ACCESS_FILES,
    HOST_FILE,
    OLD_SSHD_FILE,
    SSHD_FILE,
    backup_scope,
    unit_order,
)
from polydev.host_setup.inventory_values import HostData, check_host_data
from polydev.host_setup.render import (
    config_hash,
    render,
    render_unit,
    stamp_command,
    template_paths,
)
from polydev.host_setup.sysctl import VALUES, sysctl_text
from polydev.host_setup.whole_host import browser_host
from polydev.hosttool import sshd
from tests.certificates import make_tls
from tests.unit.fake_host import FakeHost, fake_host

UNITS = "/etc/systemd/system/"
DIGEST = "a" * 64
DEBIAN = {"uname -s": "Linux", "useradd": "/usr/sbin/useradd"}
ID = "20250131_120000-abcd1234"
# Two of the protocol assignments are global, and the former relays from 6to4 count as global too.
APART = [IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24")]

Site = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Return an inventory's values for a host, with a verified image."""
    store = tmp_path_factory.mktemp("store")
    folder = store / "images" / DIGEST
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"verification": {"passed": true}}')
    given_ = {"store": str(store), "image": DIGEST, "deployment_id": ID}
    return lambda **words: {**given_, **words}


@contextmanager
def deployed(values: dict[str, Any]) -> Iterator[FakeHost]:
    """Plan everything for a host without a deployment."""
    with fake_host(DEBIAN) as host, pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydev.host_setup.whole_host.host_values", lambda: ("browsers", values))
        browser_host()
        yield host


def files_of(values: dict[str, Any]) -> dict[str, str]:
    return made_of(values)[0]


def plan_of(values: dict[str, Any]) -> dict[str, list[str]]:
    return made_of(values)[1]


def made_of(values: dict[str, Any]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return files and plan of a host; they are cached, since most tests use the same host."""
    return made_once(json.dumps(values)) if "secrets" not in values else made_anew(values)


@functools.cache
def made_once(values: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    return made_anew(json.loads(values))


def made_anew(values: dict[str, Any]) -> tuple[dict[str, str], dict[str, list[str]]]:
    with deployed(values) as host:
        return host.uploads, host.planned


def unit_of(text: str) -> configparser.ConfigParser:
    """Parse a unit file; the last value of a repeated key counts."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def configs(files: dict[str, str]) -> dict[str, str]:
    """Return the configuration hash of each unit."""
    found = {}
    for path, text in files.items():
        if match := re.search(r"^X-Polydev-Config=(.*)$", text, re.MULTILINE):
            found[path.removeprefix(UNITS)] = match[1]
    return found


INVENTORIES: list[dict[str, Any]] = [
    {},
    {"slots": 1},
    {"slots": 250, "bridge_address": "10.9.0.1/16"},
    {"resolvers": ["10.0.0.53"], "reachable": ["10.0.0.0/24", "192.168.7.0/24"]},
    {"controller_listen": "127.0.0.1:4001", "controller": {"log_level": "debug"}},
]


class TestWholeHost:
    @pytest.mark.parametrize("words", INVENTORIES)
    def test_every_template_is_rendered_and_not_empty(
        self, site: Site, words: dict[str, Any]
    ) -> None:
        files = files_of(site(**words))
        assert set(template_paths()) <= set(files)
        for path in template_paths():
            assert files[path].endswith("\n")
            assert "{{" not in files[path]
            assert "None" not in files[path]

    def test_backup_scope_contains_every_deployed_file(self, site: Site, tmp_path: Path) -> None:
        secret = tmp_path / "jwt"
        secret.write_text("s" * 32)
        values = site(secrets={"jwt-secret": str(secret)})
        held = [Path(path) for path in backup_scope(check_host_data(values, "x"))["paths"]]
        for path in files_of(values):
            assert [each for each in held if Path(path).is_relative_to(each)], path

    def test_access_paths_are_part_of_the_backup_scope(self) -> None:
        made = backup_scope(HostData())
        assert set(made["reach"]) <= set(made["paths"])
        assert set(ACCESS_FILES) <= set(template_paths())

    @pytest.mark.parametrize("words", INVENTORIES)
    def test_units_are_planned_in_unit_order(self, site: Site, words: dict[str, Any]) -> None:
        values = site(**words)
        names = [name.partition(" | ")[2] for name in plan_of(values)]
        order = unit_order(check_host_data(values, "x"))
        # The service is started by the handover.
        places = [names.index("handover" if n == "master-controller.service" else n) for n in order]
        assert places == sorted(places)

    def test_dead_man_timer_covers_all_access_files(self, site: Site) -> None:
        names = list(plan_of(site()))
        armed = names.index("Dead-man timer | armed")
        confirmed = names.index("Dead-man timer | confirmed")
        for path in ACCESS_FILES:
            (place,) = [at for at, name in enumerate(names) if name.endswith(f"| {path}")]
            assert armed < place < confirmed, path

    @pytest.mark.parametrize(
        ("target", "concerns"),
        [
            ("master-controller", {"Host tool", "Units", "Controller", "Templates"}),
            ("vm-agent", {"Host tool", "Images"}),
        ],
    )
    def test_target_plans_its_own_operations_only(
        self, site: Site, target: str, concerns: set[str]
    ) -> None:
        names = plan_of(site(target=target))
        assert {name.partition(" | ")[0] for name in names} == concerns

    def test_secrets_are_written_to_their_own_files_only(self, site: Site, tmp_path: Path) -> None:
        secret = tmp_path / "jwt"
        secret.write_text("the word of all words, and some more")
        files = files_of(site(secrets={"jwt-secret": str(secret)}))
        assert [
            path for path, text in files.items() if "the word of all words, and some more" in text
        ] == ["/etc/master-controller/secrets/jwt-secret"]
        for name in ("master-controller.service", "master-controller-next@.service"):
            assert "\nLimitCORE=0\n" in files[UNITS + name]
            line = "LoadCredential=jwt-secret:/etc/master-controller/secrets/jwt-secret\n"
            assert line in files[UNITS + name]


class TestControllerConfigCheck:
    """The plan runs the checkout's controller in a process of its own."""

    def test_plan_refuses_what_the_controller_would_refuse(
        self, site: Site, tmp_path: Path
    ) -> None:
        secret = tmp_path / "jwt"
        secret.write_text("a")
        values = site(
            controller={"log_levl": "debug", "drain_seconds": 120},
            secrets={"jwt-secret": str(secret), "foo": str(secret)},
        )
        with pytest.raises(ConfigError) as caught, deployed(values):
            pass
        message = caught.value.message
        assert message.startswith("inventory: browsers: ")
        for key in ("controller.log_levl", "controller.drain_seconds"):
            assert f"{key}: " in message
        for name in ("jwt-secret", "foo"):
            assert f"secrets.{name}: " in message

    def test_target_without_controller_skips_the_check(self, site: Site) -> None:
        assert plan_of(site(target="vm-agent", controller={"log_levl": "debug"}))

    def test_crashed_check_is_reported_with_its_output(self, site: Site, tmp_path: Path) -> None:
        package = tmp_path / "src" / "polydev"
        (package / "controller").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "controller" / "__init__.py").write_text("")
        (package / "controller" / "__main__.py").write_text("raise ImportError('half of it')")
        with pytest.raises(ConfigError, match=r"cannot run(.|\n)*half of it"):
            check_controller_config("x", tmp_path, {}, {}, {})

    @pytest.mark.parametrize("given", [{"host": Path("x")}, {"log_level": b"debug"}])
    def test_values_that_json_cannot_hold_are_refused(self, given: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"x: controller: .*not JSON serializable"):
            check_controller_config("x", Path(), {}, given, {})

    def test_values_that_contain_themselves_are_refused(self) -> None:
        given: dict[str, Any] = {}
        given["session"] = given
        with pytest.raises(ConfigError, match="x: controller: Circular reference"):
            check_controller_config("x", Path(), {}, given, {})


class TestUnits:
    def test_each_unit_writes_its_config_hash_at_start(self, site: Site) -> None:
        files = files_of(site())
        for name, config in configs(files).items():
            unit = unit_of(files[UNITS + name])
            assert re.fullmatch(r"[0-9a-f]{16}", config)
            if name.endswith((".target", ".path")) or name == "master-controller-next@.service":
                continue  # these have no process; the successor's stamp is never read
            section = "Socket" if name.endswith(".socket") else "Service"
            assert f"ExecStartPre={stamp_command(config)}" in files[UNITS + name]
            assert unit.has_section(section)

    def test_reload_writes_the_config_hash_again(self, site: Site) -> None:
        files = files_of(site())
        for name, config in configs(files).items():
            text = files[UNITS + name]
            if "ExecReload=" in text:
                assert f"ExecReload={stamp_command(config)}" in text

    CONTROLLER = frozenset({"master-controller.service", "master-controller-next@.service"})

    @pytest.mark.parametrize(
        ("before", "after", "changed"),
        [
            ({}, {}, set()),
            (
                {},
                {"slots": 9},
                {
                    *("polydev-firewall.service", "polydev-dns.service", "polydev-slots.target"),
                    *CONTROLLER,
                },
            ),
            (
                {},
                {"bridge_address": "10.9.0.1/24"},
                {
                    "polydev-network.service",
                    "polydev-firewall.service",
                    "polydev-dns.service",
                    "microvm-slot@.service",
                }
                | CONTROLLER,
            ),
            (
                {},
                {"vm_memory_mib": 4096},
                CONTROLLER | {"polydev-template.service", "polydev-templates.service"},
            ),
            ({}, {"reachable": ["10.0.0.0/24"]}, {"polydev-firewall.service"}),
            ({}, {"resolvers": ["1.1.1.1"]}, {"microvm-slot@.service"}),
            (
                {},
                {"resolvers": ["10.0.0.53"]},
                {"polydev-firewall.service", "microvm-slot@.service"},
            ),
            (
                {"resolvers": ["8.8.8.8", "10.0.0.53"]},
                {"resolvers": ["1.1.1.1", "10.0.0.53"]},
                {"microvm-slot@.service"},
            ),
            ({}, {"upstream_resolvers": ["1.1.1.1"]}, {"polydev-dns.service"}),
            ({}, {"controller": {"log_level": "debug"}}, CONTROLLER),
            (
                {},
                {"controller_listen": "0.0.0.0:4000"},
                CONTROLLER | {"master-controller.socket"},
            ),
            ({}, {"journal_max_mib": 64}, {"systemd-journald.service.d/polydev.conf"}),
            ({}, {"deadman_seconds": 30}, set()),
            ({}, {"deployment_id": "20250201_120000-ffff"}, set()),
        ],
    )
    def test_unit_hash_changes_only_with_its_inputs(
        self, site: Site, before: dict[str, Any], after: dict[str, Any], changed: set[str]
    ) -> None:
        was, now = configs(files_of(site(**before))), configs(files_of(site(**before | after)))
        assert {name for name in now if now[name] != was[name]} == changed

    def test_changed_secret_changes_the_controller_hashes_only(
        self, site: Site, tmp_path: Path
    ) -> None:
        secret = tmp_path / "jwt"
        values = site(secrets={"jwt-secret": str(secret)})
        secret.write_text("one" * 20)
        was = configs(files_of(values))
        secret.write_text("two" * 20)
        now = configs(files_of(values))
        assert {name for name in now if now[name] != was[name]} == self.CONTROLLER

    def test_changed_template_changes_the_hash(self, tmp_path: Path) -> None:
        def hash_of(text: str, *depends: str) -> str:
            folder = tmp_path / text / "templates" / UNITS.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "x.service.j2").write_text(f"[Unit]\nX={text}{{{{ config }}}}{{{{ stamp }}}}")
            return render_unit("x.service", {}, depends, tmp_path / text)[1]

        assert hash_of("a") == hash_of("a")
        assert len({hash_of("a"), hash_of("b"), hash_of("a", ""), hash_of("a", "c")}) == 4

    @given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
    def test_config_hash_differs_for_different_texts(
        self, one: list[str], other: list[str]
    ) -> None:
        if not any("\0" in text for text in one + other):
            assert (config_hash("x", *one) == config_hash("x", *other)) == (one == other)

    def test_every_service_has_restricted_capabilities(self, site: Site) -> None:
        files = files_of(site())
        for path in template_paths():
            if path.startswith(UNITS) and path.endswith(".service"):
                unit = unit_of(files[path])
                assert "CapabilityBoundingSet" in unit["Service"], path
                assert unit["Service"]["NoNewPrivileges"] == "yes", path

    def test_next_service_has_the_same_sandbox_as_the_service(self, site: Site) -> None:
        files = files_of(site())
        service, successor = (
            dict(unit_of(files[f"{UNITS}master-controller{part}.service"])["Service"])
            for part in ("", "-next@")
        )
        apart = {"ExecStartPre", "ExecStart", "Restart", "RestartSec", "Sockets"}
        assert {k: v for k, v in service.items() if k not in apart} == {
            k: v for k, v in successor.items() if k not in apart
        }
        assert successor["ExecStart"].endswith("--only-if-healthy")


class TestVms:
    def unit(self, site: Site, **words: Any) -> configparser.SectionProxy:
        return unit_of(files_of(site(**words))[f"{UNITS}microvm@.service"])["Service"]

    def test_vm_limits_come_from_the_inventory(self, site: Site) -> None:
        unit = self.unit(site, vm_cpus=3, vm_memory_mib=1000, vm_translation_cache_mib=100)
        assert (unit["CPUQuota"], unit["MemoryMax"]) == ("300%", "1612M")

    def test_vm_unit_has_its_own_user_network_and_folder(self, site: Site) -> None:
        unit = self.unit(site)
        assert (unit["User"], unit["NetworkNamespacePath"]) == (
            "polydev-vm-%i",
            "/run/netns/slot-%i",
        )
        assert unit["ReadWritePaths"] == "/var/lib/microvm/%i"

    def test_no_deployment_starts_or_stops_a_vm(self, site: Site) -> None:
        for name, commands in plan_of(site()).items():
            acting = [line for line in commands if re.search(r"systemctl [a-z-]+ microvm@", line)]
            assert all("systemctl show" in line for line in acting), name

    def test_vm_dependencies_are_deployed_before_the_handover(self, site: Site) -> None:
        names = [name.partition(" | ")[2] for name in plan_of(site())]
        order = [
            *("users", "folders", "/etc/polkit-1/rules.d/50-polydev.rules"),
            *(f"{UNITS}microvm@.service", "handover", "polydev-accelerator.service"),
        ]
        assert sorted(order, key=names.index) == order

    def test_each_slot_has_a_user_and_a_folder_of_the_controller(self, site: Site) -> None:
        files = files_of(site(slots=2))
        users = files["/etc/sysusers.d/polydev.conf"].splitlines()
        assert [line.split()[1] for line in users if line.startswith("u ")] == [
            *("polydev-controller", "polydev-vm-2", "polydev-vm-3")
        ]
        folders = files["/etc/tmpfiles.d/polydev.conf"].splitlines()
        assert [line for line in folders if "/microvm" in line] == [
            "d /var/lib/microvm 755 root root",
            "d /var/lib/microvm/2 2750 polydev-controller polydev-vm-2",
            "d /var/lib/microvm/3 2750 polydev-controller polydev-vm-3",
        ]

    @pytest.mark.parametrize(
        ("unit", "is_vm"),
        [
            *(("microvm@2.service", True), ("microvm@250.service", True)),
            *(("microvm-slot@2.service", False), ("ssh.service", False)),
            *(("microvm@2.service.d", False), ("xmicrovm@2.service", False)),
            *(("microvm@2x.service", False), ("microvm@.service", False)),
        ],
    )
    def test_polkit_rule_allows_the_controller_vm_units_only(
        self, site: Site, unit: str, is_vm: bool
    ) -> None:
        text = files_of(site())["/etc/polkit-1/rules.d/50-polydev.rules"]
        pattern = re.search(r"/(\^microvm.*?\$)/\.test", text)
        assert pattern
        assert (re.search(pattern[1], unit) is not None) is is_vm

    def test_controller_service_can_access_vm_folders_and_processes(self, site: Site) -> None:
        unit = unit_of(files_of(site())[f"{UNITS}master-controller.service"])["Service"]
        assert unit["ExecStart"].endswith(" serve --config /etc/master-controller/config.yaml")
        assert unit["ReadWritePaths"] == "/var/lib/microvm"
        assert "ProtectProc" not in unit
        assert "AF_UNIX" in unit["RestrictAddressFamilies"].split()


class TestTemplates:
    MAKER, HOLDER = "polydev-template.service", "polydev-templates.service"

    def service(self, site: Site, name: str, **words: Any) -> configparser.SectionProxy:
        return unit_of(files_of(site(**words))[UNITS + name])["Service"]

    def test_template_maker_has_a_private_network_and_one_folder(self, site: Site) -> None:
        unit = self.service(site, self.MAKER)
        folder = "/var/lib/firecracker/snapshots/base/templates"
        assert (unit["PrivateNetwork"], unit["CapabilityBoundingSet"]) == ("yes", "CAP_NET_ADMIN")
        assert unit["ReadWritePaths"] == folder
        assert "/etc/master-controller/secrets" in unit["InaccessiblePaths"].split()
        assert (unit["IPAddressDeny"], unit["IPAddressAllow"]) == ("any", "172.16.0.0/30")
        folders = files_of(site())["/etc/tmpfiles.d/polydev.conf"].splitlines()
        assert f"d {folder} 755 root root" in folders

    def test_template_units_have_memory_limits_from_vm_sizes(self, site: Site) -> None:
        words = {"vm_memory_mib": 1000, "vm_translation_cache_mib": 100}
        maker, holder = (self.service(site, name, **words) for name in (self.MAKER, self.HOLDER))
        assert (maker["MemoryMax"], maker["LimitFSIZE"]) == ("2124M", "9192M")
        assert holder["MemoryMax"] == "3024M"

    def test_template_holder_has_no_private_users(self, site: Site) -> None:
        # In a user namespace all clients would have the same user id.
        assert "PrivateUsers" not in self.service(site, self.HOLDER)

    def test_no_deployment_waits_for_or_stops_the_template_maker(self, site: Site) -> None:
        values = site()
        for name, commands in plan_of(values).items():
            acting = [line for line in commands if re.search(rf"systemctl .*{self.MAKER}", line)]
            assert all("systemctl show" in line for line in acting), name
        assert self.MAKER not in unit_order(check_host_data(values, "x"))
        assert "Restart" in unit_of(files_of(values)[UNITS + self.MAKER])["Service"]

    def test_backup_scope_contains_the_template_maker(self) -> None:
        assert self.MAKER in backup_scope(HostData())["units"]

    def test_template_path_unit_watches_folders(self, site: Site) -> None:
        text = files_of(site())[f"{UNITS}polydev-template.path"]
        store = "/var/lib/firecracker/snapshots/base"
        assert re.findall("^PathChanged=(.*)$", text, re.MULTILINE) == [
            *(store, f"{store}/images", "/opt/master-controller"),
            *("/etc/master-controller/config.yaml", "/usr/bin/qemu-system-x86_64"),
            "/run/polydev/accelerator.json",
        ]

    def test_changed_vm_code_restarts_the_template_holder(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        was = configs(files_of(site()))
        monkeypatch.setattr("polydev.host_setup.vm_units.vm_digest", lambda root: "another")
        now = configs(made_anew(site())[0])
        assert {name for name in now if now[name] != was[name]} == {self.HOLDER}


class TestFirewall:
    def text(self, **words: Any) -> str:
        values = network.network_values(check_host_data(words, "x"))
        return render("/etc/polydev/firewall.nft", values)

    def chain(self, text: str, name: str) -> list[str]:
        found = re.search(rf"^\tchain {name} \{{\n(.*?)^\t\}}$", text, re.DOTALL | re.MULTILINE)
        assert found
        return [line.strip() for line in found[1].splitlines() if line.strip()]

    def test_firewall_replaces_only_its_own_table(self) -> None:
        text = self.text()
        assert (
            re.findall(r"^(?:table|delete table) (\S+ \S+)", text, re.MULTILINE)
            == ["inet polydev"] * 3
        )
        assert "flush ruleset" not in text
        assert text.count("{") == text.count("}")

    def test_packets_from_other_source_addresses_are_dropped(self) -> None:
        text = self.text(slots=3)
        line = "ip saddr != 192.168.100.2-192.168.100.4 drop"
        assert self.chain(text, "from_vm_to_host")[2] == line
        assert self.chain(text, "from_vm")[1] == line

    def test_vms_reach_only_dns_on_the_host(self) -> None:
        chain = self.chain(self.text(), "from_vm_to_host")
        assert chain[:2] == ["ct state invalid drop", "ct state established,related accept"]
        assert chain[3:] == [
            "ip daddr 192.168.100.1 udp dport 53 accept",
            "ip daddr 192.168.100.1 tcp dport 53 accept",
            "drop",
        ]

    def test_vms_cannot_connect_to_each_other(self) -> None:
        text = self.text()
        assert 'oifname "br-vm" drop' in self.chain(text, "from_vm")
        assert self.chain(text, "to_vm") == [
            "ct state invalid drop",
            "ct state established,related accept",
            "drop",
        ]

    def test_vm_packets_outside_the_bridge_are_dropped(self) -> None:
        text = self.text(bridge_address="10.9.0.1/24")
        elsewhere = '{ "br-vm", "lo" }'
        assert self.chain(text, "arriving")[-1] == (
            f"iifname != {elsewhere} ip saddr 10.9.0.0/24 drop"
        )
        assert self.chain(text, "output")[-1] == (
            f"ip daddr 10.9.0.0/24 oifname != {elsewhere} reject with icmp type host-unreachable"
        )
        assert self.chain(text, "forward")[-1] == "ip daddr 10.9.0.0/24 drop"

    def test_packets_without_nat_are_dropped(self) -> None:
        text = self.text()
        assert self.chain(text, "leaving")[-1] == (
            'ip saddr 192.168.100.0/24 oifname != { "br-vm", "lo" } drop'
        )
        for chain in ("from_vm_to_host", "from_vm", "to_vm"):
            rules = self.chain(text, chain)
            invalid = rules.index("ct state invalid drop")
            assert invalid < rules.index("ct state established,related accept"), chain

    def test_the_closed_ranges_are_dropped_last(self) -> None:
        text = self.text(resolvers=["10.0.0.53"], reachable=["10.1.0.0/16"])
        assert self.chain(text, "from_vm")[-5:] == [
            "ct state established,related accept",
            "ip daddr @reachable accept",
            "ip daddr 10.0.0.53 udp dport 53 accept",
            "ip daddr 10.0.0.53 tcp dport 53 accept",
            "ip daddr @closed drop",
        ]
        assert "elements = { 10.1.0.0/16 }" in text

    def test_no_exceptions_without_reachable_networks(self) -> None:
        text = self.text(resolvers=["1.1.1.1"])
        assert "set reachable" not in text
        assert "@reachable" not in text
        assert "dport 53" not in " ".join(self.chain(text, "from_vm"))

    def test_nat_applies_to_vm_addresses_only(self) -> None:
        assert self.chain(self.text(), "nat")[-1] == (
            'ip saddr 192.168.100.0/24 oifname != "br-vm" masquerade'
        )

    @given(st.ip_addresses(v=4))
    def test_closed_ranges_are_all_non_global_addresses(self, address: IPv4Address) -> None:
        is_closed = any(address in IPv4Network(each) for each in inventory_network_checks.CLOSED)
        if not any(address in each for each in APART):
            assert is_closed == (address.is_multicast or not address.is_global)

    @pytest.mark.parametrize(
        "address",
        [
            *("169.254.169.254", "10.1.2.3", "172.31.255.255", "192.168.100.1", "127.0.0.1"),
            *("100.64.0.1", "0.0.0.0", "255.255.255.255", "192.168.0.1", "224.0.0.251"),
            *("192.0.2.2", "198.51.100.1", "203.0.113.7", "198.18.0.3", "198.19.255.255"),
            *("192.0.0.170", "192.88.99.1", "240.0.0.1"),
        ],
    )
    def test_metadata_and_private_addresses_are_closed(self, address: str) -> None:
        assert any(
            ip_address(address) in IPv4Network(each) for each in inventory_network_checks.CLOSED
        )


class TestDns:
    def lines(self, **words: Any) -> list[str]:
        values = network.network_values(check_host_data(words, "x"))
        return render("/etc/polydev/dns.conf", values).splitlines()

    def test_each_vm_has_a_host_record(self) -> None:
        lines = self.lines(slots=3)
        assert [line for line in lines if line.startswith("host-record=")] == [
            "host-record=vm-2.vm.internal,192.168.100.2",
            "host-record=vm-3.vm.internal,192.168.100.3",
            "host-record=vm-4.vm.internal,192.168.100.4",
        ]

    def test_dnsmasq_uses_the_upstream_resolvers_only(self) -> None:
        lines = self.lines(resolvers=["10.0.0.53"], upstream_resolvers=["1.1.1.1", "9.9.9.9"])
        servers = [line for line in lines if line.startswith("server=")]
        assert servers == ["server=1.1.1.1", "server=9.9.9.9"]
        assert {"no-resolv", "no-hosts", "stop-dns-rebind", "local=/vm.internal/"} <= set(lines)

    def test_dnsmasq_listens_on_the_bridge_only(self) -> None:
        lines = self.lines(bridge_address="10.9.0.1/24")
        assert {"listen-address=10.9.0.1", "bind-interfaces", "except-interface=lo"} <= set(lines)


class TestOtherFiles:
    def test_host_file_describes_the_declared_host(self, site: Site) -> None:
        files = files_of(site(slots=2, resolvers=["10.0.0.53"], controller_listen="10.0.0.7:81"))
        known = json.loads(files[HOST_FILE])
        assert known["bridge"] == {"name": "br-vm", "address": "192.168.100.1/24"}
        assert (known["slots"], known["resolvers"]) == ([2, 3], ["10.0.0.53"])
        assert known["translatesNames"] is True
        assert (known["controllerAddress"], known["controllerPort"]) == ("10.0.0.7", 81)
        assert known["controllerCertificate"] is None

    def test_host_file_names_the_tls_certificate(self, site: Site, tmp_path: Path) -> None:
        tls = make_tls(tmp_path)
        secrets = {"tls-certificate": str(tls.certificate), "tls-key": str(tls.key)}
        known = json.loads(files_of(site(secrets=secrets))[HOST_FILE])
        file = "/etc/master-controller/secrets/tls-certificate"
        assert known["controllerCertificate"] == file
        assert "microvm-slot@3.service" in known["units"]

    def test_slots_target_wants_each_slot(self, site: Site) -> None:
        text = files_of(site(slots=2))[f"{UNITS}polydev-slots.target"]
        assert re.findall("^Wants=(.*)$", text, re.MULTILINE) == [
            "microvm-slot@2.service",
            "microvm-slot@3.service",
        ]

    def test_controller_config_merges_inventory_over_defaults(self, site: Site) -> None:
        words = {"controller": {"log_level": "debug", "drain_seconds": 5}}
        text = files_of(site(**words))["/etc/master-controller/config.yaml"]
        assert yaml.safe_load(text) == {
            "host": "127.0.0.1",
            "port": 4000,
            "database_url": "sqlite+aiosqlite:////var/lib/master-controller/controller.sqlite3",
            "image_store": "/var/lib/firecracker/snapshots/base",
            "slots": [2, 3, 4, 5, 6, 7, 8, 9],
            "vm_network": "192.168.100.0/24",
            "vm_root": "/var/lib/microvm",
            "vm": {"cpus": 2, "memory_mib": 2048, "translation_cache_mib": 1024},
            "log_level": "debug",
            "drain_seconds": 5,
        }

    def test_controller_loads_the_deployed_configuration(
        self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from polydev.controller.settings import load_settings

        file = tmp_path / "config.yaml"
        file.write_text(files_of(site())["/etc/master-controller/config.yaml"])
        assert load_settings(file).port == 4000

    def test_kernel_values_are_written_and_applied(self, site: Site) -> None:
        files = files_of(site())
        assert files["/etc/sysctl.d/60-polydev.conf"] == sysctl_text(VALUES)
        plan = plan_of(site())
        for key, value in VALUES.items():
            assert plan[f"Kernel settings | sysctl {key}"] == [f"sysctl -q -w {key}={value}"]

    def test_sshd_refuses_root_and_password_logins(self, site: Site) -> None:
        lines = files_of(site())["/etc/ssh/sshd_config.d/00-polydev.conf"].splitlines()
        assert {"PermitRootLogin no", "PasswordAuthentication no"} <= set(lines)

    def test_sshd_settings_precede_other_files(self, site: Site) -> None:
        """sshd uses the first of several values, and those of a Match block before any other."""
        files = files_of(site())
        (path,) = (path for path in files if path.startswith("/etc/ssh/"))
        assert Path(path).name < "01-permitrootlogin.conf" < "50-cloud-init.conf"
        lines = [line for line in files[path].splitlines() if not line.startswith("#")]
        assert lines[0] == "Match all"
        told = {name.lower(): value for name, value in map(str.split, lines[1:])}
        assert told == json.loads(files[HOST_FILE])["sshd"]
        assert path == SSHD_FILE == f"/{sshd.PARTS}/{sshd.OURS}"

    def test_old_sshd_file_is_removed_and_in_the_backup_scope(self, site: Site) -> None:
        with fake_host({**DEBIAN, "ls -1A /etc/ssh": [Path(OLD_SSHD_FILE).name]}) as host:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "polydev.host_setup.whole_host.host_values", lambda: ("browsers", site())
                )
                browser_host()
            assert host.planned[f"SSH | {OLD_SSHD_FILE}"] == [f"rm {OLD_SSHD_FILE}"]
        made = backup_scope(HostData())
        assert OLD_SSHD_FILE in made["paths"]
        assert OLD_SSHD_FILE in made["reach"]

    def test_access_hash_depends_on_firewall_and_bridge_only(self) -> None:
        base = access_hash(HostData())
        assert access_hash(HostData(journal_max_mib=64, controller={"log_level": "debug"})) == base
        assert (
            access_hash(check_host_data({"reachable": ["10.9.0.0/16"]}, "x")) != base
        )  # the firewall
        assert access_hash(check_host_data({"bridge_address": "10.9.0.1/24"}, "x")) != base


def test_missing_template_value_is_an_error(tmp_path: Path) -> None:
    template = tmp_path / "templates/etc/x.conf.j2"
    template.parent.mkdir(parents=True)
    template.write_text("listen = {{ address }}\n")
    assert render("/etc/x.conf", {"address": "::1"}, tmp_path) == "listen = ::1\n"
    with pytest.raises(UndefinedError, match="address"):
        render("/etc/x.conf", {}, tmp_path)
