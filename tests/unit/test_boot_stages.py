"""Boot stages and panics, read from the output of real serial consoles."""

from __future__ import annotations

import pytest

from polydev.vm import boot_stages

pytestmark = pytest.mark.unit

KERNEL = """\
[    0.000000] Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org) (gcc-12)
[    3.125964] virtio_blk virtio0: [vda] 5660672 512-byte logical blocks (2.90 GB/2.70 GiB)
"""
INIT = """\
SELinux:  Could not open policy file <= /etc/selinux/targeted/policy/policy.33:  No such file
[    4.054572] systemd[1]: Failed to find module 'autofs4'

Welcome to Debian GNU/Linux 12 (bookworm)!
[  OK  ] Listening on systemd-networkd.socket - Network Service Netlink Socket.
"""
VNC = "[  OK  ] Started polydev-vnc.service - X display :1 seen over VNC on port 5901.\n"
NETWORK = "[  OK  ] Reached target network.target - Network.\n"
WAITING = "[*     ] Job polydev-browser.service/start running (6s / 3min 4s)\r\n\x1bM\r\x1b[K"
OVER = "[\x1b[K[  OK  ] Reached target multi-user.target - Multi-User System.\n"
READY = "polydev: ready after 22.85 s\n"

ROOT_AWAITED = "initramfs: Waiting for /dev/vdz to appear...\n"
ROOT_NEVER_CAME = (
    ROOT_AWAITED
    + "initramfs: Timeout while waiting for devices for / (and possibly /usr) filesystems to "
    "appear (did you specify the correct ones?)\ninitramfs: Will cause kernel panic in 10s...\n"
)
ROOT_REFUSED = (
    "initramfs: Failed to mount root filesystem from /dev/vda: No such device\r\n"
    "initramfs: Will cause kernel panic in 10s...\r\n"
)
PANIC = (
    "[   12.886705] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n"
    "[   12.887] CPU: 1 PID: 1 Comm: init Not tainted 6.1.0-56-amd64 #1  Debian 6.1.192-2\r\n"
)
NO_ROOT_WITHOUT_INITRD = (
    '[    1.3] VFS: Cannot open root device "vdz" or unknown-block(0,0): error -6\n'
    "[    1.3] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n"
)
FAILED = (
    "[FAILED] Failed to start polydev-agent.servi…host over HTTP how far this VM is.\n"
    "See 'systemctl status polydev-agent.service' for details.\n"
    "[   13.401996] systemd[1]: Failed to start polydev-agent.service - Polydev agent: tells.\n"
    "[FAILED] Failed to start filler.service - Takes all the space there is.\n"
)


@pytest.mark.parametrize(
    ("serial", "stage"),
    [
        ("", "none"),
        ("SeaBIOS (version 1.16.2-debian-1.16.2-1)\n", "none"),
        (KERNEL, "kernel"),
        (KERNEL + ROOT_AWAITED, "kernel"),
        (KERNEL + INIT, "init"),
        (KERNEL + INIT + NETWORK, "network"),
        (KERNEL + INIT + VNC + NETWORK, "services"),
        (KERNEL + INIT + NETWORK + VNC + WAITING + OVER, "services"),
        (KERNEL + INIT + NETWORK + VNC + WAITING + OVER + READY, "ready"),
    ],
)
def test_boot_stage_is_the_furthest_seen(serial: str, stage: str) -> None:
    assert boot_stages.boot_stage(serial) == stage


def test_stages_are_listed_in_fixed_order() -> None:
    assert boot_stages.stages_seen(KERNEL + INIT + VNC) == ["kernel", "init", "services"]
    assert boot_stages.stages_seen(KERNEL + INIT + VNC + NETWORK) == [
        "kernel",
        "init",
        "network",
        "services",
    ]


def test_boot_is_over_with_its_target() -> None:
    assert not boot_stages.boot_is_over(KERNEL + INIT + NETWORK + VNC + WAITING)
    assert boot_stages.boot_is_over(KERNEL + INIT + WAITING + OVER)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (INIT, None),
        (ROOT_AWAITED, None),
        (ROOT_AWAITED + INIT, None),
        (
            ROOT_NEVER_CAME,
            "the kernel cannot find its root filesystem: /dev/vdz does not appear",
        ),
        (
            ROOT_NEVER_CAME + PANIC,
            "the kernel cannot find its root filesystem: /dev/vdz does not appear",
        ),
        (
            ROOT_REFUSED,
            "the kernel cannot mount its root filesystem: "
            "Failed to mount root filesystem from /dev/vda: No such device",
        ),
        (
            NO_ROOT_WITHOUT_INITRD,
            "the kernel cannot mount its root filesystem: "
            "Unable to mount root fs on unknown-block(0,0)",
        ),
        (PANIC, "kernel panic: Attempted to kill init! exitcode=0x00000100"),
        (INIT + PANIC, "kernel panic: Attempted to kill init! exitcode=0x00000100"),
    ],
)
def test_kernel_panic_is_described(said: str, cause: str | None) -> None:
    assert boot_stages.kernel_panic(KERNEL + said) == cause


def test_missing_root_is_reported_until_init_runs() -> None:
    assert boot_stages.missing_root(KERNEL) is None
    assert boot_stages.missing_root(KERNEL + ROOT_AWAITED) == "/dev/vdz"
    assert boot_stages.missing_root(KERNEL + ROOT_AWAITED + INIT) is None


def test_failed_units_are_listed_by_full_name() -> None:
    assert boot_stages.failed_units(KERNEL + INIT) == []
    assert boot_stages.failed_units(KERNEL + INIT + FAILED) == [
        "filler.service",
        "polydev-agent.service",
    ]


def test_last_lines_are_plain_text() -> None:
    serial = INIT + WAITING * 50 + OVER + "\n\n" + READY
    assert boot_stages.last_lines(serial, 2) == [
        "[[  OK  ] Reached target multi-user.target - Multi-User System.",
        "polydev: ready after 22.85 s",
    ]
    assert boot_stages.last_lines("") == []
