"""Values of hosts in an inventory: which are valid, and how errors name the wrong ones."""

from __future__ import annotations

import hashlib
import json
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from polydev.errors import ConfigError
from polydev.host_setup.controller import check_controller, config_text
from polydev.host_setup.firecracker import checked_bytes, hypervisor
from polydev.host_setup.host_files_and_units import STORE
from polydev.host_setup.images import bytes_sent, rsync_argv, wanted_image
from polydev.host_setup.inventory_values import FIRST_SLOT, HostData, Target, check_host_data
from polydev.host_setup.secret_files import secret_text
from polydev.ssh import SshTarget
from tests.unit.fake_host import fake_host

ROOT = Path(__file__).resolve().parents[2]
DIGEST = "a" * 64
# Texts that systemd would misread or reject.
NO_LISTEN = {
    "address or port is missing": ("4000", "0.0.0.0", "/run/x.sock", ""),
    "is not a port": (
        *("0.0.0.0:http", "0.0.0.0:", "0.0.0.0:-1", "0.0.0.0:+1", "0.0.0.0:4 0", "::", "[::1]"),
        *("0.0.0.0:\u0664000", "0.0.0.0:4000 ", "0.0.0.0:4000\n", "0.0.0.0:4000\nListenStream=1"),
    ),
    "is not from 1 to 65535": (
        "0.0.0.0:0",
        "0.0.0.0:65536",
        "0.0.0.0:99999",
        "[::1]:0",
        f"[::1]:{9:05000}",
    ),
    "is not an IP address": (
        *(":4000", "localhost:4000", "*:4000", " 0.0.0.0:4000", "1.2.3:4000", "1.2.3.256:4000"),
        *("01.2.3.4:4000", "vsock:2:4000", "[::1:4000", "::1]:4000"),
    ),
    "write an IPv6 address in brackets, any other without": ("::1:4000", "[127.0.0.1]:4000"),
    "a server cannot listen at an address with a scope": ("[fe80::1%eth0]:4000",),
    "a server cannot listen at that address": (
        *("[fe80::1]:4000", "[::ffff:127.0.0.1]:4000", "[::ffff:0.0.0.0]:4000"),
    ),
    "not the address of a host": (
        "224.0.0.1:4000",
        "[ff02::1]:4000",
        "255.255.255.255:4000",
        "240.0.0.1:4000",
        "0.1.2.3:4000",
    ),
}


class TestData:
    def test_all_values_have_defaults(self) -> None:
        site = check_host_data({}, "browsers")
        assert site.slots == 8
        assert site.resolvers == (IPv4Address("8.8.8.8"), IPv4Address("8.8.4.4"))

    def test_connection_settings_of_pyinfra_are_accepted(self) -> None:
        check_host_data({"ssh_user": "deploy", "_sudo": True, "sudo_user": "x"}, "browsers")

    @pytest.mark.parametrize(
        ("values", "key"),
        [
            ({"slotz": 3}, "slotz: there is no such key; did you mean slots?"),
            ({"slots": 0}, "slots"),
            ({"slots": 251}, "slots"),
            ({"slots": True}, "slots: must not be true or false"),
            ({"secrets": {"jwt-secret": True}}, "secrets.jwt-secret"),
            ({"_sudoo": True}, "_sudoo: pyinfra has no such argument; did you mean _sudo?"),
            ({"slots": "many"}, "slots"),
            ({"resolvers": ["8.8.8.8", "dns.example"]}, "resolvers.1"),
            ({"reachable": ["10.0.0.1/8"]}, "reachable.0"),
            ({"bridge_address": "192.168.100.1/99"}, "bridge_address"),
            ({"image": "latest"}, "image"),
            ({"target": "everything"}, "target"),
            ({"journal_max_mib": 1}, "journal_max_mib"),
            ({"deadman_seconds": 1}, "deadman_seconds"),
            ({"journal_max_mib": 10**15}, "journal_max_mib: must be 1048576 or less"),
            ({"deadman_seconds": 86400}, "deadman_seconds: must be 3600 or less"),
            ({"vm_memory_mib": 10**12}, "vm_memory_mib: must be 1048576 or less"),
            ({"vm_translation_cache_mib": 10**9}, "vm_translation_cache_mib: must be 1048576"),
            ({3: 4}, "3: there is no such key"),
            ({"source": "a\0b"}, "source: is not a path"),
            ({"store": "\0"}, "store: is not a path"),
            ({"secrets": {"jwt-secret": "\0"}}, "secrets.jwt-secret: is not a path"),
            ({"firecracker": {"file": "fc", "sha256": "0"}}, "firecracker.sha256"),
            ({"secrets": {"jwt-secret": 3}}, "secrets.jwt-secret"),
            ({"secrets": {"../../etc/cron.d/x": "x"}}, "secrets.../../etc/cron.d/x"),
            ({"secrets": {"a/b": "x"}}, "secrets.a/b"),
            ({"secrets": {"": "x"}}, "secrets."),
            ({"secrets": {"jwt-secret\n": "x"}}, "secrets.jwt-secret\n"),
            ({"bridge_address": "10.0.0.1/29", "slots": 6}, "the host"),
            ({"bridge_address": "10.0.0.2/24"}, "the host"),  # the first VM's
            ({"bridge_address": "10.0.0.9/24", "slots": 8}, "the host"),  # the last one's
            ({"bridge_address": "10.0.0.0/24"}, "the host"),
            ({"bridge_address": "10.0.0.255/24"}, "the host"),
            ({"resolvers": []}, "resolvers: must not be empty"),
            ({"resolvers": [134744072]}, "resolvers.0: must be text, in quotes"),
            ({"reachable": [3232235776]}, "reachable.0: must be text, in quotes"),
            ({"bridge_address": 3232261121}, "bridge_address: must be text, in quotes"),
            ({"bridge_address": "10.0.0.1"}, "the host: bridge_address 10.0.0.1 names no network"),
            ({"secrets": {"jwt-secret": ""}}, "secrets.jwt-secret: must not be empty"),
            ({"store": " "}, "store: must not be empty"),
            ({"ssh_port": True}, "ssh_port: must not be true or false"),
            ({"ssh_known_hosts_file": "a\0b"}, "ssh_known_hosts_file: is not a name of a file"),
        ],
    )
    def test_invalid_value_is_refused_with_host_and_key(
        self, values: dict[str, Any], key: str
    ) -> None:
        with pytest.raises(ConfigError) as told:
            check_host_data(values, "browsers-7")
        assert told.value.message.startswith(f"inventory: browsers-7: {key}")
        assert "production.example" in str(told.value.hint)

    def test_a_list_with_a_wrong_entry_is_not_called_empty_too(self) -> None:
        with pytest.raises(ConfigError) as told:
            check_host_data({"resolvers": ["::1"]}, "browsers-7")
        assert told.value.message.count("resolvers") == 1

    @pytest.mark.parametrize(
        ("text", "why"), [(text, why) for why, texts in NO_LISTEN.items() for text in texts]
    )
    def test_invalid_listen_address_is_refused_with_its_reason(self, text: str, why: str) -> None:
        with pytest.raises(ConfigError) as told:
            check_host_data({"controller_listen": text}, "browsers-7")
        assert told.value.message.startswith("inventory: browsers-7: controller_listen")
        assert f"{why}; write an IP address and a port" in told.value.message

    def test_bridge_address_may_be_first_or_after_the_vms(self) -> None:
        for address in ("10.0.0.1/24", "10.0.0.10/24", "10.0.0.254/24"):
            assert check_host_data({"bridge_address": address, "slots": 8}, "x").slots == 8

    @pytest.mark.parametrize(
        ("listen", "address", "port"),
        [
            ("0.0.0.0:4000", "127.0.0.1", 4000),
            ("10.0.0.7:81", "10.0.0.7", 81),
            ("127.0.0.1:1", "127.0.0.1", 1),
            ("127.0.0.1:65535", "127.0.0.1", 65535),
            ("[::]:4000", "::1", 4000),
            ("[2001:DB8::7]:4000", "2001:db8::7", 4000),
        ],
    )
    def test_controller_address_as_reached_from_the_host(
        self, listen: str, address: str, port: int
    ) -> None:
        site = HostData(controller_listen=listen)
        assert (site.controller_address, site.controller_port) == (address, port)

    @pytest.mark.parametrize(
        ("target", "mine"),
        [("all", True), ("vm-agent", True), ("master-controller", False)],
    )
    def test_concerns_matches_its_target_and_all(self, target: Target, mine: bool) -> None:
        assert HostData(target=target).concerns("vm-agent") is mine

    @given(st.integers(20, 29), st.integers(1, 250))
    def test_each_slot_has_its_own_address_in_the_network(self, prefix: int, slots: int) -> None:
        assume(slots <= 2 ** (32 - prefix) - 3)
        site = check_host_data({"bridge_address": f"10.1.0.1/{prefix}", "slots": slots}, "x")
        network = site.bridge_address.network
        addresses = {site.slot_address(number) for number in site.slot_numbers}
        assert len(addresses) == slots
        assert site.slot_numbers[0] == FIRST_SLOT
        assert addresses <= set(network.hosts()) - {site.gateway}

    def test_ipv6_address_has_brackets_in_listen_but_not_in_config(self) -> None:
        site = HostData(controller_listen="[2001:DB8:0::7]:04000")
        assert site.controller_listen == str(site.listen) == "[2001:db8::7]:4000"
        assert yaml.safe_load(config_text(site))["host"] == "2001:db8::7"


class TestController:
    """The keys of `controller`, as the plan looks at them."""

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"port": 4001}, "controller.port: is derived from controller_listen"),
            ({"host": "::"}, "controller.host: is derived from controller_listen"),
            ({"vm_network": "10.0.0.0/8"}, "controller.vm_network: is derived from bridge_address"),
            ({"vm": {"cpus": 9}}, "controller.vm.cpus: is derived from vm_cpus"),
            (
                {"vm": {"pause_after_seconds": 5}},
                "controller.vm.pause_after_seconds: .*at least",
            ),
            ({"vm": 5}, "controller.vm: "),
            ({"image_store": "/x"}, "controller.image_store: is derived from"),
            ({"PORT": 4001}, "controller.PORT: there is no such key; did you mean port?"),
            ({"JWT_SECRET": "x" * 40}, "controller.JWT_SECRET: there is no such key; did you mean"),
            ({"slots": [2, 99]}, "controller.slots: the host has slots 2 to 9"),
            ({"log_levl": "debug"}, "controller.log_levl: .*did you mean log_level?"),
            ({"drain_seconds": "soon"}, "controller.drain_seconds: must be a whole number"),
            ({"database_url": "postgresql://x"}, "controller.database_url: is a secret"),
            ({"per_user": 1}, "controller.per_user: .*did you mean session.per_user"),
        ],
    )
    def test_invalid_controller_settings_are_refused(
        self, given: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"inventory: box: {said}"):
            check_controller(HostData(controller=given, source=ROOT), "box")

    def test_source_without_a_checkout_is_refused(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(ConfigError, match=r"inventory: box: source: .*is not a checkout"):
                check_controller(HostData(source=folder), "box")

    def test_other_vm_settings_keep_the_vm_sizes(self) -> None:
        given = {"vm": {"pause_after_seconds": 90, "cpus": 3}}
        site = HostData(controller=given, source=ROOT, vm_cpus=3)
        check_controller(site, "box")
        vm = yaml.safe_load(config_text(site))["vm"]
        assert vm == {
            "cpus": 3,
            "memory_mib": 2048,
            "translation_cache_mib": 1024,
            "pause_after_seconds": 90,
        }

    def test_controller_settings_may_repeat_values_or_reduce_slots(self) -> None:
        given = {"slots": [], "port": 4000, "log_level": "debug"}
        check_controller(HostData(controller=given, source=ROOT), "box")


class TestFirecracker:
    @pytest.fixture
    def program(self, tmp_path: Path) -> Path:
        file = tmp_path / "firecracker"
        file.write_bytes(b"\x7fELF")
        return file

    def test_program_with_matching_checksum_is_read(self, program: Path) -> None:
        assert checked_bytes(program, hashlib.sha256(b"\x7fELF").hexdigest()) == b"\x7fELF"

    def test_wrong_checksum_is_refused_with_both_values(self, program: Path) -> None:
        with pytest.raises(ConfigError) as told:
            checked_bytes(program, DIGEST)
        assert DIGEST in told.value.message
        assert hashlib.sha256(b"\x7fELF").hexdigest() in told.value.message

    def test_missing_program_is_refused_with_its_path(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"nowhere: No such file"):
            checked_bytes(tmp_path / "nowhere", DIGEST)

    def test_nothing_is_sent_if_either_checksum_is_wrong(self, program: Path) -> None:
        given_ = {
            "file": program,
            "sha256": hashlib.sha256(b"\x7fELF").hexdigest(),
            "jailer_file": program,
            "jailer_sha256": DIGEST,
        }
        site = check_host_data({"firecracker": given_}, "x")
        with fake_host({}), pytest.raises(ConfigError, match="firecracker"):
            hypervisor(site)

    def test_both_programs_are_sent(self, program: Path) -> None:
        digest = hashlib.sha256(b"\x7fELF").hexdigest()
        given_ = {"file": program, "sha256": digest, "jailer_file": program}
        site = check_host_data({"firecracker": {**given_, "jailer_sha256": digest}}, "x")
        with fake_host({}) as host:
            hypervisor(site)
            assert list(host.planned) == [
                "Hypervisor | /usr/local/bin/firecracker",
                "Hypervisor | /usr/local/bin/jailer",
            ]

    def test_nothing_is_sent_without_firecracker_settings(self) -> None:
        with fake_host({}) as host:
            hypervisor(HostData())
            assert host.planned == {}


class TestWantedImage:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        return tmp_path / "store"

    def put(self, store: Path, record: object, *, golden: bool = True) -> HostData:
        folder = store / "images" / DIGEST
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record))
        (folder / "rootfs.ext4").touch()
        if golden:
            (store / "promotions").mkdir()
            (store / "promotions" / "000001").symlink_to(f"../images/{DIGEST}")
            (store / "golden-rootfs.ext4").symlink_to("promotions/000001/rootfs.ext4")
        return HostData(store=store)

    def test_golden_image_is_the_default(self, store: Path) -> None:
        assert wanted_image(self.put(store, {"verification": {"passed": True}})) == DIGEST

    def test_named_image_need_not_be_golden(self, store: Path) -> None:
        site = self.put(store, {"verification": {"passed": True}}, golden=False)
        assert wanted_image(site.model_copy(update={"image": DIGEST})) == DIGEST

    def test_no_golden_image_is_refused(self, store: Path) -> None:
        with pytest.raises(ConfigError, match="no golden image") as told:
            wanted_image(HostData(store=store))
        assert "./inv up" in str(told.value.hint)

    def test_unknown_image_is_refused(self, store: Path) -> None:
        with pytest.raises(ConfigError, match=f"no image {DIGEST[:12]} in"):
            wanted_image(HostData(store=store, image=DIGEST))

    @pytest.mark.parametrize("record", [{}, {"verification": None}, {"verification": {}}])
    def test_unverified_image_is_refused(self, store: Path, record: object) -> None:
        with pytest.raises(ConfigError, match="is not verified") as told:
            wanted_image(self.put(store, record))
        assert told.value.hint == f"./inv golden.verify {DIGEST[:12]}"

    def test_image_that_failed_verification_is_refused(self, store: Path) -> None:
        with pytest.raises(ConfigError, match="is not verified"):
            wanted_image(self.put(store, {"verification": {"passed": False}}))

    def test_image_with_a_damaged_record_is_refused(self, store: Path) -> None:
        site = self.put(store, {})
        (store / "images" / DIGEST / "record.json").write_text("{")
        with pytest.raises(ConfigError, match="no image"):
            wanted_image(site)


class TestTransfer:
    TARGET = SshTarget("browsers", "browsers.example", user="deploy", port=2222)

    def test_rsync_writes_as_root_into_incoming(self) -> None:
        argv = rsync_argv(self.TARGET, Path("/store/images/x"), "x", None)
        assert argv[-2:] == ["/store/images/x/", f"deploy@browsers.example:{STORE}/incoming/x/"]
        assert "--rsync-path=sudo -n rsync" in argv
        assert f"--rsh={self.TARGET.rsync_shell()}" in argv
        assert not any(word.startswith("--copy-dest") for word in argv)

    def test_rsync_copies_unchanged_parts_from_an_existing_image(self) -> None:
        argv = rsync_argv(self.TARGET, Path("/store/images/x"), "x", "y")
        assert f"--copy-dest={STORE}/images/y" in argv
        assert not {"--whole-file", "--inplace"} & set(argv)

    def test_in_use_lock_is_not_sent(self) -> None:
        argv = rsync_argv(self.TARGET, Path("/store/images/x"), "x", None)
        assert "--exclude=in-use.lock" in argv

    @pytest.mark.parametrize(
        ("stats", "count"),
        [
            ("x\nTotal bytes sent: 1,234,567\nTotal bytes received: 99\n", 1_234_567),
            ("Total bytes sent: 12\n", 12),
            ("", 0),
        ],
    )
    def test_bytes_sent_are_read_from_rsync_output(self, stats: str, count: int) -> None:
        assert bytes_sent(stats) == count


class TestSecrets:
    def test_secret_is_the_unchanged_text_of_its_file(self, tmp_path: Path) -> None:
        (tmp_path / "jwt").write_text("größer als 32 Byte\n", encoding="utf-8", newline="")
        assert secret_text("jwt-secret", tmp_path / "jwt") == "größer als 32 Byte\n"

    def test_invalid_secret_file_is_named_but_not_quoted(self, tmp_path: Path) -> None:
        (tmp_path / "jwt").write_bytes(b"secret\xff")
        (tmp_path / "large").write_bytes(b"x" * 65537)
        for name, why in {
            "jwt": "not UTF-8 text",
            "nothing": "No such file",
            ".": "directory",
            "/dev/zero": "device",
            "large": "larger than 65536 bytes",
        }.items():
            with pytest.raises(ConfigError, match=f"secrets.jwt-secret.*{why}") as caught:
                secret_text("jwt-secret", tmp_path / name)
            assert "xff" not in caught.value.message
            assert caught.value.hint
