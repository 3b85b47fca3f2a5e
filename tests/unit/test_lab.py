"""The lab's pure parts: names, addresses, files over the root, command lines."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoke.context import Context

from polydev.errors import ConfigError
from polydev.lab import Lab, LabError, debian_base, lifecycle, ssh_argv, up
from polydev.lab.access import inside_argv
from polydev.lab.addresses import LINK_PREFIX, POOL, allot, link_of, routed_networks
from polydev.lab.container import (
    cgroup_of,
    container_argv,
    innermost_pid,
    link_owner,
    nspawn_argv,
)
from polydev.lab.container_files import lay, network_files, share_packages
from polydev.lab.debian_base import (
    FILES,
    PRIVATE,
    SUITES,
    mmdebstrap_argv,
    package_sources,
    root_id,
)
from polydev.lab.lab_record import checked_name, lab_folder, read_lab, recorded_labs
from polydev.progress import Steps
from polydev.settings import Settings
from verbs.lab import logs

INTERFACE_NAME_CHARACTERS = 15


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    folder, root = tmp_path / "labs" / "one", tmp_path / "root"
    folder.mkdir(parents=True)
    root.mkdir()
    return Lab(name="one", folder=folder, root=root, address="198.51.100.2", gateway="198.51.100.1")


@pytest.fixture
def own_settings(tmp_path: Path) -> Settings:
    return Settings(store=tmp_path / "store", cache=tmp_path / "cache", state=tmp_path)


class TestName:
    @pytest.mark.parametrize("name", ["a", "dev", "a1-b", "abcdefghijk"])
    def test_valid_lab_names(self, name: str) -> None:
        assert checked_name(name) == name

    @pytest.mark.parametrize(
        "name", ["", "A", "1a", "-a", "a-", "a_b", "a/b", "..", "abcdefghijkl", "a\n"]
    )
    def test_invalid_lab_names(self, name: str) -> None:
        with pytest.raises(ConfigError, match="is not a valid name of a lab"):
            checked_name(name)

    def test_longest_name_fits_an_interface_name(self, lab: Lab) -> None:
        longest = lab.model_copy(update={"name": checked_name("abcdefghijk")})
        assert len(longest.veth) <= INTERFACE_NAME_CHARACTERS

    def test_lab_folder_refuses_paths(self, own_settings: Settings) -> None:
        with pytest.raises(ConfigError):
            lab_folder("../x", own_settings)


class TestAllot:
    def test_first_link_of_an_unused_pool_is_allotted(self) -> None:
        assert [str(end) for end in allot([])] == ["198.51.100.1", "198.51.100.2"]

    @given(count=st.integers(0, 63))
    def test_allotted_links_never_overlap(self, count: int) -> None:
        taken: list[IPv4Network] = []
        for _ in range(count):
            ours, theirs = allot(taken)
            link = link_of(str(theirs))
            assert ours in link
            assert link.subnet_of(POOL)
            assert not any(link.overlaps(each) for each in taken)
            taken.append(link)

    def test_link_with_an_address_in_use_is_skipped(self) -> None:
        _, theirs = allot([IPv4Network("198.51.100.3/32")])
        assert str(theirs) == "198.51.100.6"

    def test_full_address_pool_is_reported(self) -> None:
        with pytest.raises(LabError, match="no addresses are left"):
            allot([IPv4Network("198.51.0.0/16")])

    def test_routed_networks_are_parsed(self) -> None:
        routes = (
            '[{"dst": "default", "gateway": "192.0.2.1"}, {"dst": "10.0.0.0/8"},'
            ' {"type": "local", "dst": "10.1.2.3", "table": "local"}]'
        )
        assert routed_networks(routes) == [IPv4Network("10.0.0.0/8"), IPv4Network("10.1.2.3/32")]
        assert routed_networks("") == []


class TestRecord:
    def test_record_is_read_back_as_written(self, lab: Lab, own_settings: Settings) -> None:
        lab.write()
        assert read_lab(lab.folder) == lab
        assert recorded_labs(own_settings) == [lab]

    def test_incomplete_record_is_ignored(self, lab: Lab, own_settings: Settings) -> None:
        (lab.folder / "lab.json").write_text('{"name": "one"')
        assert read_lab(lab.folder) is None
        assert recorded_labs(own_settings) == []

    def test_missing_state_folder_gives_no_labs(self, own_settings: Settings) -> None:
        assert recorded_labs(replace(own_settings, state=Path("/nowhere"))) == []

    def test_logs_of_a_powered_off_lab_show_its_console(
        self,
        lab: Lab,
        own_settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("POLYDEV_STATE", str(own_settings.state))
        lab.write()
        lab.console_log.write_text("Powering off.\n")
        logs(Context(), name="one")
        assert capsys.readouterr().out == "\nPowering off.\n\n"
        with pytest.raises(SystemExit):
            logs(Context(), name="two")
        assert capsys.readouterr().err.startswith("error: there is no lab two\n")

    def test_record_without_a_suite_means_bookworm(self, lab: Lab) -> None:
        record = json.loads(lab.model_dump_json())
        del record["suite"]
        (lab.folder / "lab.json").write_text(json.dumps(record))
        assert read_lab(lab.folder) == lab

    def test_up_refuses_a_lab_of_another_suite(self, lab: Lab, own_settings: Settings) -> None:
        lab.write()
        with pytest.raises(ConfigError, match="lab one has Debian 12, not Debian 13") as refused:
            up("one", own_settings, Steps(), "trixie")
        todo = "./inv lab.down --name one, then ./inv lab.up --name one --suite trixie"
        assert todo in str(refused.value.hint)
        assert read_lab(lab.folder) == lab

    def test_lab_that_refuses_login_is_ended(
        self, lab: Lab, own_settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def shut(lab: Lab) -> None:
            raise LabError("nobody got in")

        ended: list[Lab] = []
        monkeypatch.setattr(lifecycle, "MACHINE_LOCK", own_settings.state / "lock")
        monkeypatch.setattr(lifecycle, "_start", lambda lab, _settings: lab)
        monkeypatch.setattr(lifecycle, "_wait_login", shut)
        monkeypatch.setattr(lifecycle, "kill", ended.append)
        own_settings.state.mkdir(exist_ok=True)
        with pytest.raises(LabError, match="nobody got in"):
            lifecycle._boot("one", lambda: lab, own_settings, Steps())
        assert ended == [lab]

    def test_lab_that_never_started_does_not_run(self, lab: Lab) -> None:
        assert not lab.running()


def places(suite: str, targets: str) -> list[str]:
    """Return the package sources of a suite without the keyring."""
    return [line.split(" ", 2)[2] for line in package_sources(suite, targets)]


class TestRoot:
    TARGETS = (
        "http://a.example/debian|bookworm|main|Debian\n"
        "http://a.example/debian|bookworm|contrib|Debian\n"
        "http://a.example/debian-security|bookworm-security|main|Debian\n"
        "http://b.example/tools|bookworm|main|Somebody\n"
        "http://a.example/debian|trixie|main|Debian\n"
    )
    ARGV = mmdebstrap_argv(Path("/t"), "bookworm", [])

    def test_package_sources_are_those_of_the_suite(self) -> None:
        assert places("bookworm", self.TARGETS) == [
            "http://a.example/debian bookworm main",
            "http://a.example/debian-security bookworm-security main",
        ]

    def test_package_sources_of_a_suite_known_to_apt(self) -> None:
        assert places("trixie", self.TARGETS) == ["http://a.example/debian trixie main"]

    def test_package_sources_of_another_suite_use_the_same_mirrors(self) -> None:
        known = self.TARGETS.replace("|trixie|", "|bookworm-backports|")
        assert places("trixie", known) == [
            "http://a.example/debian trixie main",
            "http://a.example/debian-security trixie-security main",
        ]

    @pytest.mark.parametrize("suite", SUITES)
    def test_no_package_sources_are_left_to_mmdebstrap(self, suite: str) -> None:
        assert package_sources(suite, "") == []
        assert mmdebstrap_argv(Path("/t"), suite, [])[-2:] == [suite, "/t"]

    def test_root_id_depends_on_sources_and_suite(self) -> None:
        assert root_id("bookworm", []) != root_id("bookworm", ["deb x"])
        assert root_id("bookworm", ["deb x"]) == root_id("bookworm", ["deb x"])
        assert root_id("bookworm", []) != root_id("trixie", [])

    def test_unknown_suite_is_refused_with_the_known_ones(self, own_settings: Settings) -> None:
        with pytest.raises(ConfigError, match="cannot have the suite 'sid'") as refused:
            up("one", own_settings, Steps(), "sid")
        assert refused.value.hint == "choose one: bookworm (Debian 12), trixie (Debian 13)"

    def test_lab_base_lacks_packages_that_a_deployment_installs(self) -> None:
        include = next(word for word in self.ARGV if word.startswith("--include="))
        packages = include.removeprefix("--include=").split(",")
        assert not {"qemu-system-x86", "nftables", "dnsmasq", "dnsmasq-base"} & set(packages)

    def test_private_files_are_part_of_files(self) -> None:
        assert set(FILES) >= PRIVATE

    def test_failed_mmdebstrap_is_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        argv = ["sh", "-c", "echo 'E: no such mirror' >&2; exit 1"]
        monkeypatch.setattr(debian_base, "mmdebstrap_argv", lambda *_: argv)
        sources = ["deb [signed-by=x] http://a/debian/ bookworm main"]
        with pytest.raises(LabError, match=r"Debian 12 \(bookworm\) .* E: no such mirror") as told:
            debian_base._make(tmp_path, "bookworm", sources, lambda _: None)
        assert "http://a/debian/dists/bookworm" in str(told.value.hint)

    def test_mmdebstrap_runs_in_its_own_mount_namespace(self) -> None:
        assert self.ARGV.index("unshare") < self.ARGV.index("mmdebstrap")
        assert {"--mount", "--kill-child"} < set(self.ARGV)


class TestFiles:
    def test_folders_keep_the_mode_of_the_lower_root(self, lab: Lab) -> None:
        (lab.root / "home" / "deploy").mkdir(parents=True)
        (lab.root / "home" / "deploy").chmod(0o750)
        lab.upper.mkdir()
        lay(lab, "home/deploy/.profile", "x", mode=0o600)
        assert (lab.upper / "home/deploy").stat().st_mode & 0o777 == 0o750
        assert (lab.upper / "home/deploy/.profile").stat().st_mode & 0o777 == 0o600

    def test_network_files_have_the_addresses_of_the_lab(self, lab: Lab) -> None:
        files = network_files(lab)
        assert files["etc/hostname"] == "one\n"
        assert set(files) == {
            *("etc/hostname", "etc/hosts", "etc/resolv.conf"),
            *(f"etc/systemd/network/10-{link}.network" for link in ("host0", "uplink")),
        }
        host0 = files["etc/systemd/network/10-host0.network"]
        assert f"Address=198.51.100.2/{LINK_PREFIX}\n" in host0

    def test_share_packages_copies_new_packages_only(self, tmp_path: Path) -> None:
        source, target = tmp_path / "a", tmp_path / "b"
        (source / "partial").mkdir(parents=True)
        target.mkdir()
        (source / "x_1_all.deb").write_bytes(b"new")
        (source / "y_1_all.deb").write_bytes(b"theirs")
        (source / "partial" / "z_1_all.deb").write_bytes(b"half")
        (source / "lock").touch()
        (target / "y_1_all.deb").write_bytes(b"ours")
        share_packages(source, target)
        assert {file.name: file.read_bytes() for file in target.iterdir()} == {
            "x_1_all.deb": b"new",
            "y_1_all.deb": b"ours",
        }

    def test_share_packages_leaves_out_those_of_a_lab_that_is_being_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, target = tmp_path / "a", tmp_path / "b"
        source.mkdir()
        target.mkdir()
        for name in "xy":
            (source / f"{name}_1_all.deb").touch()
        link = Path.hardlink_to

        def link_or_lose(made: Path, file: Path) -> None:
            if file.name.startswith("x"):
                file.unlink()
            link(made, file)

        monkeypatch.setattr(Path, "hardlink_to", link_or_lose)
        share_packages(source, target)
        assert [file.name for file in target.iterdir()] == ["y_1_all.deb"]

    def test_share_packages_from_a_missing_folder_does_nothing(self, tmp_path: Path) -> None:
        share_packages(tmp_path / "nowhere", tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestArgv:
    def test_ssh_checks_the_host_keys_of_the_lab(self, lab: Lab) -> None:
        words = ssh_argv(lab, ["echo", "a b"])
        assert words[-3:] == ["deploy@198.51.100.2", "--", "echo 'a b'"]
        assert f"UserKnownHostsFile={lab.known_hosts}" in words
        assert "StrictHostKeyChecking=yes" in words
        assert ssh_argv(lab, ["true"], user="root")[-3] == "root@198.51.100.2"

    def test_container_command_line_contains_the_lab_folder(self, lab: Lab) -> None:
        assert str(lab.folder) in container_argv(lab, Path("/cgroup"), kvm=False)

    def test_kvm_is_bound_only_if_available(self, lab: Lab) -> None:
        assert not [word for word in nspawn_argv(lab, kvm=False) if word.endswith(":/dev/kvm")]
        assert [word for word in nspawn_argv(lab, kvm=True) if word.endswith(":/dev/kvm")]

    def test_inside_argv_has_a_clean_environment(self) -> None:
        words = inside_argv(7)
        assert words[words.index("--target") + 1] == "7"
        assert words[words.index("env") :][:3] == ["env", "--chdir=/", "-i"]

    def test_link_that_goes_while_it_is_read_has_no_owner(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def gone(_: Path) -> str:
            raise OSError(errno.ENODEV, "No such device")

        monkeypatch.setattr(Path, "read_text", gone)
        assert link_owner(lab) is None

    def test_machine_without_cgroup2_is_refused(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"
        monkeypatch.setattr(Path, "read_text", lambda _: mounts)
        assert cgroup_of(lab) == Path("/sys/fs/cgroup/polydev-lab-one")
        mounts = mounts.replace("cgroup2", "cgroup")
        with pytest.raises(LabError, match="has no cgroup2 hierarchy"):
            cgroup_of(lab)

    def test_innermost_pid_is_read(self) -> None:
        assert innermost_pid("Name:\tsystemd\nNSpid:\t4242\t9\t1\n") == 1
        assert innermost_pid("NSpid:\t4242\n") == 4242
