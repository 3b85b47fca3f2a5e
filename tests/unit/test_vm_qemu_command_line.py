"""The command lines of QEMU and the kernel from a VM's configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from polydev.vm.config import Ports, VmConfig
from polydev.vm.qemu_command_line import kernel_command_line, overlay_argv, qemu_argv

CONFIG = VmConfig(
    vm_id="seven",
    folder=Path("/run/seven"),
    kernel=Path("/images/vmlinux"),
    initrd=Path("/images/initrd.img"),
    cmdline="root=/dev/vda console=ttyS0\n",
    rootfs=Path("/images/rootfs.ext4"),
    image_digest="d1ge57",
    ports=Ports(agent=18080, vnc=15901, novnc=16080),
)


def values(argv: list[str], name: str) -> list[str]:
    return [argv[place + 1] for place, word in enumerate(argv) if word == name]


def value(argv: list[str], name: str) -> str:
    (only,) = values(argv, name)
    return only


def netdev(config: VmConfig) -> list[str]:
    return value(qemu_argv(config), "-netdev").split(",")


def test_kernel_command_line_names_image_and_vm() -> None:
    assert kernel_command_line(CONFIG) == (
        "root=/dev/vda console=ttyS0 polydev.image=d1ge57 polydev.vm=seven"
    )


def test_vm_without_test_console_has_one_serial_port() -> None:
    argv = qemu_argv(CONFIG)
    assert values(argv, "-serial") == ["file:/run/seven/serial.log"]
    assert not any("id=console" in word for word in values(argv, "-chardev"))
    assert "debug_shell" not in " ".join(argv)


def test_console_is_a_shell_on_the_second_serial_port() -> None:
    argv = qemu_argv(replace(CONFIG, test_console=True))
    # The order of the ports is their number in the guest.
    assert values(argv, "-serial") == ["file:/run/seven/serial.log", "chardev:console"]
    (console,) = [word for word in values(argv, "-chardev") if "id=console" in word]
    assert "path=/run/seven/console.sock" in console.split(",")
    assert value(argv, "-append").endswith(" systemd.debug_shell=ttyS1")


def test_accelerator_and_cpu_options() -> None:
    tcg, kvm = qemu_argv(CONFIG), qemu_argv(replace(CONFIG, accelerator="kvm"))
    assert (value(kvm, "-accel"), value(kvm, "-cpu")) == ("kvm", "host")
    assert value(tcg, "-accel").split(",")[:2] == ["tcg", "thread=multi"]
    assert value(tcg, "-cpu") == "max,erms=off,fsrm=off"


def test_ports_are_forwarded_from_loopback_to_the_guest() -> None:
    forwards = [word for word in netdev(CONFIG) if word.startswith("hostfwd=")]
    assert forwards == [
        "hostfwd=tcp:127.0.0.1:18080-172.16.0.2:8080",
        "hostfwd=tcp:127.0.0.1:15901-172.16.0.2:5901",
        "hostfwd=tcp:127.0.0.1:16080-172.16.0.2:6080",
    ]


@pytest.mark.parametrize(("outbound", "word"), [(False, "restrict=on"), (True, "restrict=off")])
def test_outbound_network_needs_permission(outbound: bool, word: str) -> None:
    assert word in netdev(replace(CONFIG, outbound=outbound))


def test_network_matches_the_guest_contract() -> None:
    assert {"net=172.16.0.0/24", "host=172.16.0.1"} <= set(netdev(CONFIG))
    device = next(word for word in values(qemu_argv(CONFIG), "-device") if "net" in word)
    assert f"mac={CONFIG.mac}" in device


def test_vm_boots_its_overlay_disk_with_the_image_kernel() -> None:
    argv = qemu_argv(replace(CONFIG, cpus=3, memory_mib=512))
    assert value(argv, "-kernel") == "/images/vmlinux"
    assert value(argv, "-initrd") == "/images/initrd.img"
    assert "file=/run/seven/disk.qcow2" in value(argv, "-drive")
    assert "/images/rootfs.ext4" not in " ".join(argv)
    assert (value(argv, "-smp"), value(argv, "-m")) == ("3", "512")


def test_overlay_disk_has_the_image_as_backing_file() -> None:
    argv = overlay_argv(CONFIG)
    assert value(argv, "-b") == "/images/rootfs.ext4"
    assert value(argv, "-F") == "raw"
    assert argv[-1] == "/run/seven/disk.qcow2"


def test_qemu_adds_no_default_devices() -> None:
    argv = qemu_argv(CONFIG)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(argv)
    assert value(argv, "-display") == "none"


def test_kernel_command_line_names_the_session() -> None:
    line = kernel_command_line(replace(CONFIG, session_id="eight"))
    assert line.endswith(" polydev.vm=seven polydev.session=eight")


def test_translation_cache_size_is_passed_to_tcg() -> None:
    argv = qemu_argv(replace(CONFIG, translation_cache_mib=64))
    assert value(argv, "-accel") == "tcg,thread=multi,tb-size=64"


class TestQmp:
    def qmp(self, argv: list[str]) -> list[str]:
        assert value(argv, "-mon") == "chardev=qmp,mode=control"
        (found,) = [word for word in values(argv, "-chardev") if "id=qmp" in word]
        return found.split(",")

    def test_qmp_socket_is_made_by_qemu(self) -> None:
        assert "path=/run/seven/qmp.sock" in self.qmp(qemu_argv(CONFIG))

    def test_qmp_socket_can_be_inherited(self) -> None:
        found = self.qmp(qemu_argv(CONFIG, qmp_listener=7))
        assert "fd=7" in found
        assert not any(word.startswith("path=") for word in found)


class TestTap:
    CONFIG = replace(CONFIG, tap="tap0")

    def test_tap_network_uses_an_existing_interface(self) -> None:
        assert netdev(self.CONFIG) == [
            *("tap", "id=net0", "ifname=tap0", "script=no", "downscript=no")
        ]

    def test_qemu_sandbox_denies_programs_and_privileges(self) -> None:
        words = value(qemu_argv(self.CONFIG), "-sandbox").split(",")
        assert {"on", "spawn=deny", "elevateprivileges=deny"} <= set(words)
        assert "-sandbox" not in qemu_argv(CONFIG)


def test_viewer_url_of_forwarded_ports() -> None:
    assert CONFIG.ports.viewer_url.startswith("http://127.0.0.1:16080/vnc.html?autoconnect=true")
