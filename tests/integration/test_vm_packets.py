"""Packets of VMs pass the bridge, in IPv4 and with NAT, or not at all; real packets, without a lab.

    guest  eth0 172.16.0.2 -- tap0 [slot-2] -- br-vm -- the small host -- wan -- stranger 1.2.3.2

The stranger is where the default route leads to, and answers as if it were the VM of slot 3. Each
wall is also taken away, so that it is the wall that a test finds.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator

import pytest

from polydev.host_layout import GATEWAY_MAC
from polydev.host_setup.inventory_values import HostData
from tests.netns import SmallHost, small_host

GUEST, VM, OTHER_VM = "172.16.0.2", "192.168.100.2", "192.168.100.3"

# The slot's TAP is a veth here, whose other end is the guest.
SETUP = f"""
set -e
ip netns add guest
ip -n slot-2 link delete tap0
ip -n slot-2 link add tap0 address {GATEWAY_MAC} type veth peer name eth0 netns guest
ip -n slot-2 address add 172.16.0.1/30 dev tap0
ip netns exec slot-2 sysctl -q -w net.ipv6.conf.tap0.disable_ipv6=1
ip -n slot-2 link set tap0 up
ip -n guest address add {GUEST}/30 dev eth0
ip -n guest link set eth0 up
ip -n guest route add default via 172.16.0.1
ip netns add stranger
ip link add wan type veth peer name eth0 netns stranger
ip address add 1.2.3.1/30 dev wan
ip link set wan up
ip -n stranger link set lo up
ip -n stranger address add 1.2.3.2/30 dev eth0
ip -n stranger address add {OTHER_VM}/32 dev lo
ip -n stranger address add 192.168.100.77/32 dev lo
ip -n stranger link set eth0 up
ip -n stranger route add default via 1.2.3.1
ip route add default via 1.2.3.2
sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.wan.rp_filter=0
"""

LINKS = (
    "-n guest link show eth0",
    "-n slot-2 link show tap0",
    "-n slot-2 link show uplink",
    "-n stranger link show eth0",
    "link show vm-2",
    "link show wan",
)
PATIENCE_SECONDS = 60

# Prints `source protocol` of each packet at an interface, until one with the text `truth` comes.
HEAR = """
import socket, subprocess, sys
interface, *command = sys.argv[1:]
packets_heard = []
# All protocols: a bridge takes the others from its ports before they get here.
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as listener:
    listener.bind((interface, 3))
    listener.settimeout(60)
    subprocess.run(["sh", "-c", command[0]], check=True)
    while True:
        packet, (_, protocol, kind, *_) = listener.recvfrom(2000)
        if kind == socket.PACKET_OUTGOING or protocol != 0x0800:
            continue
        if packet.endswith(b"truth"):
            break
        packets_heard.append(socket.inet_ntoa(packet[12:16]) + " " + str(packet[9]))
print("\\n".join(packets_heard))
"""
SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    if len(sys.argv) > 3:
        client.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
        client.bind((sys.argv[3], 0))
    client.sendto(sys.argv[2].encode(), (sys.argv[1], 9999))
"""
# A reset of an unknown connection, which conntrack calls invalid.
RESET = """
import socket, struct
header = struct.pack(">HHIIBBHHH", 5555, 80, 1, 1, 5 << 4, 0x04, 0, 0, 0)
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as client:
    client.sendto(header, ("1.2.3.2", 0))
"""
# "I am the router": RFC 4861, section 4.2.
ADVERTISE = """
import socket, struct
source, to = (socket.inet_pton(socket.AF_INET6, each) for each in ("fe80::1", "ff02::1"))
said = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
words = source + to + struct.pack(">II", len(said), 58) + said
total = sum(struct.unpack(f">{len(words) // 2}H", words))
while total >> 16:
    total = (total & 0xFFFF) + (total >> 16)
said = said[:2] + struct.pack(">H", ~total & 0xFFFF) + said[4:]
packet = struct.pack(">IHBB", 6 << 28, len(said), 58, 255) + source + to + said
frame = bytes.fromhex("333300000001" "020000000099" "86dd") + packet
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as client:
    client.bind(("eth0", 0))
    client.send(frame)
"""
SERVE = """
import http.server
server = http.server.HTTPServer(("192.168.100.3", 8080), http.server.BaseHTTPRequestHandler)
print("ready", flush=True)
server.serve_forever()
"""
ASK_AGENT = """
import asyncio, sys
from polydev.controller.machines.agent_client import AgentClient
from polydev.controller.relay.forwarding import open_screen
async def ask():
    agent = AgentClient(60)
    try:
        await agent.health(sys.argv[1])
    except Exception as error:
        print(error.message)
    try:
        (await open_screen(sys.argv[1], 8080)).close()
        print("connected")
    except Exception as error:
        print(error.closing.cause)
    await agent.close()
asyncio.run(ask())
"""


def python(script: str, *words: str) -> str:
    return shlex.join([sys.executable, "-c", script, *words])


def within(namespace: str, command: str) -> str:
    return f"ip netns exec {namespace} {command}"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallHost]:
    with small_host(tmp_path_factory.mktemp("host"), HostData(slots=2)) as made:
        made.inside(SETUP)
        wait_for_links(made)
        yield made


def wait_for_links(host: SmallHost) -> None:
    """Wait until the kernel has processed the carriers, before which links drop packets."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    for link in LINKS:
        while "state UP" not in (said := host.inside(f"ip {link}")):
            assert time.monotonic() < deadline, said
            time.sleep(0.05)


def packets_heard(host: SmallHost, interface: str, *commands: str) -> list[str]:
    """Return the packets that arrive at an interface after the commands, up to the last one."""
    return host.inside(python(HEAR, interface, "; ".join(commands))).splitlines()


class TestSlot:
    TRUTH = within("slot-2", python(SEND, "192.168.100.1", "truth"))

    def test_packets_of_no_connection_are_dropped(self, host: SmallHost) -> None:
        reset = within("guest", python(RESET))
        assert packets_heard(host, "vm-2", reset, self.TRUTH) == []
        flushed = "; ".join(f"nft flush chain ip slot {name}" for name in ("forward", "translated"))
        open_forward = "nft 'chain ip slot forward { policy accept; }'"
        host.inside(within("slot-2", f"sh -c {shlex.quote(f'{flushed}; {open_forward}')}"))
        assert packets_heard(host, "vm-2", reset, self.TRUTH) == [f"{GUEST} 6"]

    def test_packets_without_nat_are_dropped(self, host: SmallHost) -> None:
        host.tell("slot", "mend", 2)
        lie = within("guest", python(SEND, "1.2.3.2", "lie"))
        assert packets_heard(host, "vm-2", lie, self.TRUTH) == [f"{VM} 17"]
        host.inside(within("slot-2", "nft flush chain ip slot from_guest"))
        again = within("guest", python(SEND, "1.2.3.2", "another lie"))
        assert packets_heard(host, "vm-2", again, self.TRUTH) == []
        host.inside(within("slot-2", "nft flush chain ip slot translated"))
        assert packets_heard(host, "vm-2", again, self.TRUTH) == [f"{GUEST} 17"]

    def test_router_advertisements_of_guest_are_ignored(self, host: SmallHost) -> None:
        host.tell("slot", "mend", 2)
        advertise = within("guest", python(ADVERTISE))
        after = within("guest", python(SEND, "1.2.3.2", "truth"))
        routes = within("slot-2", "ip -6 route show default")
        packets_heard(host, "vm-2", advertise, after)
        assert host.inside(routes) == ""
        settings = "disable_ipv6=0 net.ipv6.conf.tap0.accept_ra=2 net.ipv6.conf.all.disable_ipv6=0"
        host.inside(within("slot-2", f"sysctl -q -w net.ipv6.conf.tap0.{settings}"))
        host.inside(within("slot-2", "nft delete table ip6 slot"))
        host.inside(advertise)
        found = f"until {routes} | grep -q fe80::1; do sleep 0.05; {advertise}; done"
        assert host.inside(f"timeout 120 sh -c {shlex.quote(found)}; {routes}")
        host.tell("slot", "mend", 2)


class TestHost:
    def test_vm_source_address_from_outside_is_dropped(self, host: SmallHost) -> None:
        lie = within("stranger", python(SEND, "1.2.3.1", "lie", "192.168.100.77"))
        truth = within("stranger", python(SEND, "1.2.3.1", "truth"))
        receive = (
            "import socket, subprocess, sys\n"
            "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:\n"
            "    server.bind(('1.2.3.1', 9999)); server.settimeout(60)\n"
            "    subprocess.run(['sh', '-c', sys.argv[1]], check=True)\n"
            "    print(server.recv(100).decode())\n"
        )
        ask = python(receive, f"{lie}; {truth}")
        assert host.inside(ask) == "truth"
        host.inside("nft flush chain inet polydev arriving")
        assert host.inside(ask) == "lie"
        host.inside("nft -f /etc/polydev/firewall.nft")

    def test_no_other_host_answers_for_vm_while_bridge_is_down(self, host: SmallHost) -> None:
        route = f"ip route delete unreachable {host.site.bridge_address.network}"
        ask = python(ASK_AGENT, OTHER_VM)
        refused = "its agent does not answer: the host's bridge br-vm is down\nbridge-down"
        with host.running(within("stranger", python(SERVE))):
            host.inside("ip link set br-vm down")
            assert host.inside(ask) == refused
            host.inside(route)
            assert host.inside(ask) == refused, "the firewall alone"
            host.bring_addresses()
            host.inside("ip link set br-vm down; nft delete table inet polydev")
            assert host.inside(ask) == refused, "the route alone"
            host.inside(route)
            assert host.inside(ask) == "its agent answers 501 on /health\nconnected"
        host.bring_addresses()
        host.inside("nft -f /etc/polydev/firewall.nft")
        assert [each for each in host.differences() if "tap0" not in each] == []
