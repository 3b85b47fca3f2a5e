"""A small host in namespaces of this machine: the bridge, the firewall and slots, without a lab.

The host tool makes and reads the slots there with its own code; what networkd does on a real
host, this does with `ip`. Nothing of it is visible outside, and it ends with its first process.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydev.host_setup.accounts import host_json
from polydev.host_setup.host_tool import tool_bytes
from polydev.host_setup.inventory_values import HostData
from polydev.host_setup.network import network_values
from polydev.host_setup.render import render
from polydev.processes import run
from tests.hosts import ROOT

# /run, /etc, /opt and the links are its own; what it needs of ours shows through.
PREPARE = """
set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /opt
mkdir -p /run/netns /run/polydev/config /run/upper /run/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work /etc
mount -t sysfs sysfs /sys
mkdir -p /etc/polydev
cp {folder}/host.json {folder}/firewall.nft /etc/polydev
for number in {slots}; do
    echo "polydev-vm-$number:x:$((61000 + number)):61000::/:" >>/etc/passwd
done
ip link set lo up
ip link add br-vm address 02:50:00:00:00:01 type bridge stp_state 0
{addresses}
sysctl -q -w net.ipv4.ip_forward=1
nft -f /etc/polydev/firewall.nft
echo ready
exec sleep infinity
"""

# These commands do what systemd-networkd does on a real host by a deployment's files.
ADDRESSES = """\
ip link set br-vm addrgenmode none
ip address replace {bridge_address} dev br-vm
ip link set br-vm up
ip route replace unreachable {network} metric {worst_metric}
"""


@dataclass(frozen=True)
class SmallHost:
    process: int
    tool: Path
    site: HostData

    def inside(self, command: str, *, check: bool = True) -> str:
        """Run a line of shell as root there; return its output."""
        return run([*self._enter, "sh", "-c", command], check=check).stdout.strip()

    @contextmanager
    def running(self, command: str) -> Iterator[None]:
        """A line of shell that runs there meanwhile, from its first line of output on."""
        argv = [*self._enter, "sh", "-c", f"exec {command}"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline(), f"{command} has ended"
                yield
            finally:
                process.kill()

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.process), "--net", "--mount"]

    def tell(self, *words: object) -> dict[str, Any]:
        """Return the answer of the host tool there."""
        line = shlex.join([sys.executable, "-I", str(self.tool), *map(str, words)])
        answer: dict[str, Any] = json.loads(self.inside(line, check=False))
        return answer

    def bring_addresses(self) -> None:
        self.inside(ADDRESSES.format(**network_values(self.site)))

    def differences(self) -> list[str]:
        said = self.tell("network", "check")
        assert "differences" in said, said
        return [each["text"] for each in said["differences"]]


@contextmanager
def small_host(folder: Path, site: HostData) -> Iterator[SmallHost]:
    """Make a host with all of its slots for the block."""
    tool = folder / "polydev-host"
    tool.write_bytes(tool_bytes())
    values = network_values(site)
    firewall = render("/etc/polydev/firewall.nft", values, ROOT)
    (folder / "host.json").write_text(host_json(site, []))
    (folder / "firewall.nft").write_text(firewall)
    slots = " ".join(map(str, values.pop("slots")))
    words = {"slots": slots, "folder": shlex.quote(str(folder))}
    script = PREPARE.format(**values, **words, addresses=ADDRESSES.format(**values))
    argv = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "ready"
            host = SmallHost(process.pid, tool, site)
            for number in site.slot_numbers:
                answer = host.tell("slot", "up", number)
                assert answer.get("slot") == number, answer
            yield host
        finally:
            for number in site.slot_numbers:
                host.tell("slot", "down", number)
            process.kill()
