"""Start the processes of a lab's container, wait for them, end them.

All of them are children of one process, which is found again by its PID and command line. When it
dies, the kernel ends its PID namespace and with it the mount and network namespaces, so that
neither a mount nor a link is left. Its children are systemd-nspawn and slirp4netns.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from pathlib import Path
from typing import IO

from polydev.errors import LabError
from polydev.lab.addresses import LINK_PREFIX
from polydev.lab.lab_record import Lab
from polydev.processes import run, spawn
from polydev.vm.boot_stages import last_lines

UPLINK = "uplink0"
# Addresses for benchmarks (RFC 2544), seen inside the lab only; slirp4netns answers DNS on .3.
UPLINK_NETWORK = "198.18.0.0/24"
DNS_ADDRESS = "198.18.0.3"
DEVICES = "/run/systemd/nspawn/devices"
KILL_SECONDS = 60.0
POLL_SECONDS = 0.02
STARTED = b"started\n"
REBOOTED = 133  # status of nspawn, told to keep its unit, when the container wants to reboot

# The shell is PID 1 of its namespace, and in this machine's network. Each lab has a control
# group: two systemds in one would end each other's processes. nspawn's own state goes into
# a tmpfs: it leaves some behind and, where /run is on a disk, cannot boot a second time. Device
# nodes are the lab's own: there is no udev to set their modes, and this machine's stay as
# they are.
_START = f"""
folder=$1 lower=$2 veth=$3 gateway=$4 cgroup=$5
shift 5
mkdir -p "$cgroup/first"
echo 0 >"$cgroup/first/cgroup.procs"
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=0755 lab /run/systemd/nspawn
mkdir {DEVICES}
mknod -m 0666 {DEVICES}/tun c 10 200
mknod -m 0660 {DEVICES}/kvm c 10 232
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work,\
index=off,redirect_dir=on" "$folder/mounted"
chgrp "$(awk -F: '$1 == "kvm" {{print $3}}' "$folder/mounted/etc/group")" {DEVICES}/kvm
boot() {{
  : >"$folder/netns"
  unshare --net="$folder/netns" ip link set lo up
  nsenter --net="$folder/netns" ip link add host0 type veth peer name "$veth" netns 1
  ip link set "$veth" alias "$folder"
  ip address add "$gateway/{LINK_PREFIX}" dev "$veth"
  ip link set "$veth" up
  rm -f "$folder/ready"
  mkfifo "$folder/ready"
  slirp4netns --netns-type=path --configure --disable-host-loopback --mtu=65520 \
--ready-fd=3 --cidr={UPLINK_NETWORK} "$folder/netns" {UPLINK} >"$folder/uplink.log" 2>&1 \
3>"$folder/ready" &
  read -r _ <"$folder/ready" || :
  echo started
  exec >&2
  status=0
  (echo 0 >"$cgroup/cgroup.procs"; exec "$@") || status=$?
  kill $! || :
  ip link delete "$veth"
  umount "$folder/netns"
}}
boot "$@"
while [ "$status" = {REBOOTED} ]; do boot "$@"; done
exit "$status"
"""


def nspawn_argv(lab: Lab, *, kvm: bool) -> list[str]:
    """Return the nspawn command over the mounted files, in an existing network namespace."""
    return [
        *("env", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network"),
        *("systemd-nspawn", "--quiet", "--settings=no", "--register=no", "--keep-unit", "--boot"),
        *(f"--directory={lab.folder / 'mounted'}", f"--machine={lab.name}"),
        *(f"--network-namespace-path={lab.folder / 'netns'}", "--capability=all"),
        # As on a real host: systemd filters the addresses and devices of units by BPF.
        "--system-call-filter=bpf @keyring",
        *("--console=read-only", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
        f"--bind={DEVICES}/tun:/dev/net/tun",
        *([f"--bind={DEVICES}/kvm:/dev/kvm"] if kvm else []),
    ]


def container_argv(lab: Lab, cgroup: Path, *, kvm: bool) -> list[str]:
    """Return the command of a whole lab, in namespaces that end with its first process."""
    return [
        *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
        *("--mount-proc", "sh", "-eu", "-c", _START, "lab", str(lab.folder)),
        ":".join(map(str, lab.lower)),
        *(lab.veth, lab.gateway, str(cgroup), *nspawn_argv(lab, kvm=kvm)),
    ]


def start(lab: Lab) -> Lab:
    """Start the container, wait for its link, and return the lab with its PID.

    Raises LabError with the last lines of its console.
    """
    cgroup = cgroup_of(lab)
    cgroup.mkdir(exist_ok=True)
    for name in ("upper", "work", "mounted"):
        (lab.folder / name).mkdir(exist_ok=True)
    argv = container_argv(lab, cgroup, kvm=Path("/dev/kvm").exists())
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as said, os.fdopen(writing, "wb") as saying:
        with lab.console_log.open("ab") as console:
            process = spawn(argv, stdout=saying, stderr=console, stays=True)
        saying.close()
        # Lab.running reaps it; without a return code Popen would warn of a running child.
        process.returncode = 0
        started = lab.model_copy(update={"pid": process.pid})
        try:
            started.write()
            _await_start(started, said)
        except BaseException:
            kill(started)
            raise
    return started


def kill(lab: Lab) -> None:
    """Kill every process of the lab and remove its link. Raises LabError."""
    cgroup = cgroup_of(lab)
    if lab.running():
        with contextlib.suppress(ProcessLookupError):
            os.kill(lab.pid, signal.SIGKILL)
        wait_ended(lab, KILL_SECONDS)
    if cgroup.is_dir():
        (cgroup / "cgroup.kill").write_text("1")
        _wait_empty(lab, cgroup)
        for folder, _, _ in os.walk(cgroup, topdown=False):
            Path(folder).rmdir()
    if link_owner(lab) is not None:
        run(["ip", "link", "delete", lab.veth], check=False)


def power_off(lab: Lab, grace_seconds: float) -> None:
    """Tell the lab's init to power off and wait for it; then kill what is left."""
    init = init_pid(lab)
    if init is not None:
        os.kill(init, signal.SIGRTMIN + 4)  # systemd: start poweroff.target
        wait_ended(lab, grace_seconds)
    kill(lab)


def wait_ended(lab: Lab, seconds: float) -> bool:
    """Wait for the end of the lab's first process; return whether it came in time."""
    try:
        descriptor = os.pidfd_open(lab.pid)
    except ProcessLookupError:
        return True
    try:
        ended = bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
    return ended and not lab.running()


def init_pid(lab: Lab) -> int | None:
    """Return the PID of the container's init on this machine; None if it does not run."""
    try:
        candidates = (cgroup_of(lab) / "payload/init.scope/cgroup.procs").read_text().split()
    except OSError:
        return None
    for candidate in candidates:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{candidate}/status").read_text()
            if innermost_pid(status) == 1:
                return int(candidate)
    return None


def innermost_pid(status: str) -> int:
    """Return a process's PID in its own namespace, from its /proc status."""
    line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return int(line.split()[-1])


def cgroup_of(lab: Lab) -> Path:
    """Return the lab's control group; the machine may mount cgroup2 beside cgroup v1."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place) / f"polydev-lab-{lab.name}"
    raise LabError(
        "this machine has no cgroup2 hierarchy, which the lab's systemd needs",
        "mount one: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 "
        "/sys/fs/cgroup/unified",
    )


def link_owner(lab: Lab) -> str | None:
    """Return the folder of the lab that a link of this name belongs to; "" if unknown."""
    try:
        return Path(f"/sys/class/net/{lab.veth}/ifalias").read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENODEV:  # the kernel removed it between open and read
            return None
        raise


def console_hint(lab: Lab) -> str:
    """Return the last lines of the container's console, for an error's hint."""
    text = lab.console_log.read_text(errors="replace") if lab.console_log.exists() else ""
    tail = "\n  ".join(last_lines(text)) or "nothing"
    return f"its console's last lines:\n  {tail}"


def _await_start(lab: Lab, said: IO[bytes]) -> None:
    if said.readline() != STARTED:
        raise LabError(
            f"the container of lab {lab.name} could not be started",
            f"{console_hint(lab)}\nit needs root, and a state folder on a filesystem that "
            "supports overlays (ext4, xfs, btrfs)",
        )


def _wait_empty(lab: Lab, cgroup: Path) -> None:
    deadline = time.monotonic() + KILL_SECONDS
    while "populated 1" in (cgroup / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise LabError(
                f"processes of lab {lab.name} do not end",
                f"see which: systemd-cgls {cgroup}; then ./inv lab.down --name {lab.name}",
            )
        time.sleep(POLL_SECONDS)
