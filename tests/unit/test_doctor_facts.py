"""The doctor's facts about a machine and a host, also where everything is missing."""

from __future__ import annotations

import json
import os
import subprocess
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from polydev.client import host_facts, host_probe, operator_machine_checks
from polydev.client.doctor_findings import DiskSpace
from polydev.errors import CommandError, CommandTimeout, DeployError
from polydev.processes import Completed, Orphan
from polydev.settings import Settings
from polydev.ssh import SshTarget
from polydev.vm.accelerator import KVM_DEVICE

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(store=tmp_path / "s", cache=tmp_path / "c", state=tmp_path / "state")


class TestMachine:
    @pytest.mark.parametrize("user", [0, 1000])
    @pytest.mark.parametrize("device", [True, False])
    @pytest.mark.parametrize("kernel", [None, Path("/k")])
    def test_machine_facts_are_gathered(
        self,
        user: int,
        device: bool,
        kernel: Path | None,
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        tried: list[object] = []
        orphan = Orphan(7, ("qemu",))

        def choose(kernel: Path, file: Path) -> str:
            tried.append((kernel, file))
            return "kvm"

        def access(path: object, how: int) -> bool:
            assert (path, how) == (KVM_DEVICE, os.R_OK | os.W_OK)
            return device

        monkeypatch.setattr(os, "geteuid", lambda: user)
        monkeypatch.setattr(os, "access", access)
        monkeypatch.setattr(operator_machine_checks, "choose_accelerator", choose)
        monkeypatch.setattr(operator_machine_checks, "orphans", lambda: [orphan])
        monkeypatch.setattr(
            operator_machine_checks, "abandoned_temp_folders", lambda: [Path("folder")]
        )
        monkeypatch.setattr(
            operator_machine_checks, "_installed", lambda names: dict.fromkeys(names, "1")
        )
        monkeypatch.setattr(operator_machine_checks, "_said", shlex_join)
        found = operator_machine_checks.gather(settings, ["qemu"], kernel)
        assert found.packages == {"qemu": "1"}
        assert found.is_root == (user == 0)
        assert found.kvm_device == device
        assert found.qemu == "qemu-system-x86_64 --version"
        assert found.orphans == (orphan,)
        assert found.scratch == (Path("folder"),)
        # Without /dev/kvm no trial boot runs, so no kernel is needed.
        is_tried = kernel is not None or not device
        assert found.accelerator == ("kvm" if is_tried else None)
        place = settings.state / "accelerator.json"
        assert tried == ([(kernel or Path(os.devnull), place)] if is_tried else [])

    def test_disk_of_a_missing_folder_is_that_of_its_parent(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Path] = []

        def usage(folder: Path) -> Usage:
            asked.append(folder)
            return Usage(9, 5, 4)

        monkeypatch.setattr(operator_machine_checks.shutil, "disk_usage", usage)  # type: ignore[attr-defined]
        assert operator_machine_checks.disk_of(tmp_path / "a/b") == DiskSpace(9, 4)
        assert asked == [tmp_path]

    @pytest.mark.parametrize("error", [OSError("x"), CommandError(["q"], 1, "x")])
    def test_failed_programs_give_unknown_facts(
        self, error: Exception, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(operator_machine_checks, "choose_accelerator", fail)
        assert operator_machine_checks._accelerator(None, settings) is None
        if not isinstance(error, OSError):
            monkeypatch.setattr(operator_machine_checks, "run", fail)
            assert operator_machine_checks._said(["q"]) is None
            assert operator_machine_checks._installed(["q"]) is None

    def test_installed_package_versions_are_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said = "qemu\tinstalled\t1:7.2\nnft\tconfig-files\t1.0\nnonsense\n"
        done = Completed((), 1, said, "", 0.0)
        monkeypatch.setattr(operator_machine_checks, "run", lambda *_, **__: done)
        found = operator_machine_checks._installed(["qemu", "nft", "never"])
        assert found == {"qemu": "1:7.2", "nft": None, "never": None}


def shlex_join(argv: list[str]) -> str:
    return " ".join(argv)


class TestHost:
    @pytest.fixture
    def nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A host without any of our files and programs."""
        for name in ("HOST", "CONFIG", "DNS_CONFIG", "ACCELERATOR", "TOOL", "GOLDEN"):
            monkeypatch.setattr(host_probe, name, str(tmp_path / name))
        monkeypatch.setattr(host_probe, "FOLDERS", (str(tmp_path), str(tmp_path / "none")))

        def missing(*_: object, **__: object) -> None:
            raise FileNotFoundError

        monkeypatch.setattr(subprocess, "run", missing)
        return tmp_path

    def test_facts_of_a_host_without_a_deployment(self, nothing: Path) -> None:
        found = host_probe.facts()
        assert found["startedAt"] <= found["endedAt"]
        absent = ["host", "config", "qemu", "accelerator", "golden", "health", "look"]
        absent += ["templates", "polkitVersion", "controller"]
        assert {name: found[name] for name in absent} == dict.fromkeys(absent)
        assert found["failedVms"] == []
        assert found["upstreams"] == {}
        assert found["polkit"] == {"vm": None, "other": None}
        assert found["units"] == dict.fromkeys(host_probe.UNITS)
        assert found["disks"][str(nothing / "none")] is None
        assert 0 < found["disks"][str(nothing)]["free"] <= found["disks"][str(nothing)]["size"]

    @pytest.mark.parametrize(
        ("said", "health", "look", "templates"),
        [
            ("", None, None, None),
            ("nonsense", None, None, None),
            ("[]", None, None, None),
            ('{"ok": true}', {"ok": True}, {"ok": True}, None),
            ('{"error": "usage"}', {"error": "usage"}, None, None),
            ('{"serving": 1}', {"serving": 1}, {"serving": 1}, {"serving": 1}),
        ],
    )
    def test_answers_of_the_host_tool_are_parsed(
        self,
        said: str,
        health: object,
        look: object,
        templates: object,
        nothing: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (nothing / "TOOL").touch()
        given: list[tuple[list[str], bytes]] = []

        def run(argv: list[str], input: bytes, **_: object) -> Any:
            given.append((argv[1:], input))
            return subprocess.CompletedProcess(argv, 0, said.encode(), b"")

        monkeypatch.setattr(subprocess, "run", run)
        assert host_probe._health() == health
        assert host_probe._look({"slots": [1]}) == look
        assert host_probe._templates() == templates
        asked = json.dumps({"parts": host_probe.LOOKED_AT, "host": {"slots": [1]}}).encode()
        assert given == [
            (["health", "--seconds", "10"], b""),
            (["look"], asked),
            (["controller", "templates", "report"], b""),
        ]
        assert host_probe._look(None) is None

    @pytest.mark.parametrize(
        ("pid", "status", "may"), [("7", 0, True), ("7", 1, False), ("0", 0, None), ("", 0, None)]
    )
    def test_polkit_permission_is_read_from_pkcheck(
        self, pid: str, status: int, may: bool | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(argv: list[str], **_: object) -> Any:
            code = status if argv[0] == "pkcheck" else 0
            return subprocess.CompletedProcess(argv, code, pid.encode(), b"")

        monkeypatch.setattr(subprocess, "run", run)
        assert host_probe._may("microvm@2.service") is may

    def test_failed_vms_are_read_from_systemctl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = b"microvm@2.service loaded failed failed VM 2\n"
        done: Any = subprocess.CompletedProcess([], 0, text, b"")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
        assert host_probe._failed_vms() == ["microvm@2.service"]

    def test_golden_image_is_read_from_its_link(self, nothing: Path) -> None:
        image = nothing / "images" / "abc"
        image.mkdir(parents=True)
        (nothing / "GOLDEN").symlink_to(image / "rootfs.ext4")
        assert host_probe._golden() is None
        (image / "rootfs.ext4").touch()
        assert host_probe._golden() == {"digest": "abc", "createdAt": None}
        (image / "record.json").write_text('{"createdAt": "now"}')
        assert host_probe._golden() == {"digest": "abc", "createdAt": "now"}

    def test_upstream_resolvers_are_read_from_dnsmasq_config(self, nothing: Path) -> None:
        (nothing / "DNS_CONFIG").write_text("server=9.9.9.9\n#server=1.1.1.1\nserver=/x/8.8.8.8\n")
        assert host_probe._upstreams() == ["9.9.9.9"]


class TestOverSsh:
    target = SshTarget("prod", "prod.example")

    @pytest.mark.parametrize(
        ("status", "stdout", "reason"),
        [
            (255, "", "cannot be reached over SSH: no route"),
            (1, "", "cannot inspect prod: no route"),
            (0, "nonsense", "cannot inspect prod: no route"),
        ],
    )
    def test_ssh_failure_is_reported(
        self, status: int, stdout: str, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = Completed((), status, stdout, "no route\n", 0.0)
        monkeypatch.setattr(host_facts, "run", lambda *_, **__: done)
        with pytest.raises(DeployError, match=reason):
            host_facts.gather(self.target)

    def test_ssh_timeout_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise CommandTimeout(["ssh"], 120, "")

        monkeypatch.setattr(host_facts, "run", fail)
        with pytest.raises(DeployError, match="does not answer"):
            host_facts.gather(self.target)

    def test_probe_runs_over_ssh_and_its_facts_are_read(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: dict[str, Any] = {}

        def run(argv: list[str], **options: Any) -> Completed:
            given.update(options, argv=argv)
            return Completed((), 0, '{"host": {}, "accelerator": {"accelerator": "kvm"}}', "", 0.0)

        monkeypatch.setattr(host_facts, "run", run)
        found = host_facts.gather(self.target)
        assert given["argv"] == self.target.argv("python3", "-")
        assert given["input"] == Path(host_probe.__file__).read_text()
        assert (given["check"], given["timeout_seconds"]) == (False, host_facts.PROBE_SECONDS)
        assert found.before <= found.after
        assert found.is_deployed
        assert found.accelerator == "kvm"
        assert not host_facts.HostFacts({"host": None}, 0, 0).is_deployed
