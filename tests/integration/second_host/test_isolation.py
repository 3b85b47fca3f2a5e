"""The network isolation of VMs, probed from inside two namespaces in place of VMs.

    probe-2  eth0 172.16.0.2 -- tap0 [slot-2] -- br-vm -- the host -- our machine
    probe-3  eth0 172.16.0.2 -- tap0 [slot-3] -- br-vm       |
                                                             +-- beyond: closed and open

A probe's veth takes the place of its slot's TAP, of the same name, so the slot's own rules judge
it. Behind every address that must be closed somebody listens: without the firewall and the
bridge's isolation each of them is found open.
"""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.hosts import DeployedHost

FIRST, SECOND = 2, 3
GUEST, GATEWAY = "172.16.0.2", "192.168.100.1"
GUEST_PORTS = (8080, 5901, 6080)
HOST_PORTS = (4000, 22)
LURE_PORT = 80
# Addresses of the internet, which here lead no further than to a namespace of the lab.
BEYOND, BEYOND_GATEWAY = "1.2.3.2", "1.2.3.1"
# One of each network that is not the internet.
CLOSED = (
    *("169.254.169.254", "10.99.0.1", "172.31.0.1", "192.168.77.1", "100.64.0.1"),
    *("192.0.2.2", "198.51.100.253", "203.0.113.7", "198.19.0.1"),
    *("192.0.0.9", "192.88.99.1", "240.0.0.1"),
)
# A target that is silent for so long is closed; an open one answers at once. Where all targets are
# open, none is waited for longer than it takes, but on a busy machine up to the second of these.
SILENCE_SECONDS, PATIENCE_SECONDS = 2.0, 60.0
HEARD = "/run/probe-heard"
LIES = (("10.1.2.3", "stranger"), ("192.168.100.3", "neighbour"))

LISTEN = """
import os, selectors, socket, sys
ready = selectors.DefaultSelector()
for port in map(int, sys.argv[2:]):
    ready.register(socket.create_server(("0.0.0.0", port)), selectors.EVENT_READ, "tcp")
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("0.0.0.0", port))
    ready.register(datagrams, selectors.EVENT_READ, "udp")
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    for key, _ in ready.select():
        if key.data == "tcp":
            client, peer = key.fileobj.accept()
            client.sendall(peer[0].encode())
            client.close()
        else:
            said, peer = key.fileobj.recvfrom(500)
            with open(sys.argv[1], "a") as heard:
                heard.write(peer[0] + " " + said.decode() + "\\n")
"""

CONNECT = """
import json, selectors, socket, sys, time
seconds, targets = json.loads(sys.argv[1])
waiting, found = selectors.DefaultSelector(), []
for target in targets:
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(tuple(target))
    waiting.register(client, selectors.EVENT_WRITE, target)
deadline, is_late = time.monotonic() + seconds, False
while waiting.get_map() and not is_late:
    # A last look, for a program that itself stood still.
    is_late = time.monotonic() >= deadline
    for key, _ in waiting.select(max(0, deadline - time.monotonic())):
        waiting.unregister(key.fileobj)
        if not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            found.append(key.data)
print(json.dumps(found))
"""

ASK_PEER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as client:
    print(client.recv(100).decode())
"""

# Binds to the given source address, even to a foreign one.
SEND = """
import socket, sys
source, address, port, text = sys.argv[1:]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
    client.bind((source, 0))
    client.sendto(text.encode(), (address, int(port)))
"""

RESOLVE = """
import socket, struct, sys
server, name, kind = sys.argv[1:]
labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
query = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 1, 1)
if kind == "tcp":
    with socket.create_connection((server, 53), timeout=60) as client:
        client.sendall(struct.pack(">H", len(query)) + query)
        answer = client.recv(600)[2:]
else:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(60)
        client.sendto(query, (server, 53))
        answer = client.recv(600)
print(answer[3] & 15, socket.inet_ntoa(answer[-4:]))
"""

Target = tuple[str, int]

WALLS_DOWN = f"""
nft delete table inet polydev
ip netns exec slot-{FIRST} nft flush chain ip slot forward
ip netns exec slot-{FIRST} nft flush chain ip slot translated
ip netns exec slot-{FIRST} nft 'chain ip slot forward {{ policy accept; }}'
ip link set vm-{FIRST} type bridge_slave isolated off
ip link set vm-{SECOND} type bridge_slave isolated off
# The neighbour table remembers failed lookups for a while.
ip -n slot-{FIRST} neighbour flush dev uplink
"""
WALLS_UP = f"""
systemctl reload polydev-firewall.service
ip link set vm-{FIRST} type bridge_slave isolated on
ip link set vm-{SECOND} type bridge_slave isolated on
"""
CLEAR = f"""
systemctl reload polydev-firewall.service
for name in probe-{FIRST} probe-{SECOND} beyond; do
    systemctl stop listen-$name.service
    ip netns delete $name
done
ip link delete lure
systemctl restart microvm-slot@{FIRST}.service microvm-slot@{SECOND}.service
rm -f {HEARD}
"""


def address_of(slot: int) -> str:
    return f"192.168.100.{slot}"


def probe_up(slot: int) -> str:
    return f"""
ip -n slot-{slot} link delete tap0
ip netns add probe-{slot}
ip -n slot-{slot} link add tap0 type veth peer name eth0 netns probe-{slot}
ip -n slot-{slot} address add 172.16.0.1/30 dev tap0
ip -n slot-{slot} link set tap0 up
ip -n probe-{slot} link set lo up
ip -n probe-{slot} address add 172.16.0.2/30 dev eth0
ip -n probe-{slot} link set eth0 up
ip -n probe-{slot} route add default via 172.16.0.1
"""


def beyond_up() -> str:
    """A network that the host routes to, with an address in each closed range."""
    lines = [
        "ip netns add beyond",
        "ip link add lure type veth peer name eth0 netns beyond",
        f"ip address add {BEYOND_GATEWAY}/30 dev lure",
        "ip link set lure up",
        "ip -n beyond link set lo up",
        f"ip -n beyond address add {BEYOND}/30 dev eth0",
        "ip -n beyond link set eth0 up",
        f"ip -n beyond route add default via {BEYOND_GATEWAY}",
        # It must receive datagrams with forged sources.
        "ip netns exec beyond sysctl -q -w net.ipv4.conf.all.rp_filter=0",
        "ip netns exec beyond sysctl -q -w net.ipv4.conf.eth0.rp_filter=0",
    ]
    for address in CLOSED:
        lines.append(f"ip -n beyond address add {address}/32 dev lo")
        lines.append(f"ip route add {address}/32 via {BEYOND}")
    return "\n".join(lines)


def listen(namespace: str, *ports: int) -> str:
    """A service of a namespace; systemd says when it listens."""
    words = ["systemd-run", "--quiet", f"--unit=listen-{namespace}", "--property=Type=notify"]
    words += ["--property=NotifyAccess=main"]
    words += [f"--property=NetworkNamespacePath=/run/netns/{namespace}"]
    return shlex.join([*words, "/usr/bin/python3", "-c", LISTEN, HEARD, *map(str, ports)])


@dataclass(frozen=True)
class Probes:
    """The probes: what the first reached, and what was heard of it, with and without walls."""

    deployed: DeployedHost
    host_addresses: tuple[str, ...]
    walled: frozenset[Target]
    bare: frozenset[Target]
    heard_walled: list[str]
    heard_bare: list[str]

    def say(self, script: str, *words: object) -> str:
        return say(self.deployed, script, *words)


def say(deployed: DeployedHost, script: str, *words: object) -> str:
    """Return the output of Python inside the first probe."""
    argv = ["ip", "netns", "exec", f"probe-{FIRST}", "/usr/bin/python3", "-c", script]
    return deployed.inside(shlex.join([*argv, *map(str, words)]))


def reached(
    deployed: DeployedHost, targets: list[Target], seconds: float = SILENCE_SECONDS
) -> frozenset[Target]:
    """Return the targets to which the first probe can open a connection."""
    said: list[Any] = json.loads(say(deployed, CONNECT, json.dumps([seconds, targets])))
    return frozenset((address, port) for address, port in said)


def heard(deployed: DeployedHost) -> list[str]:
    """Return those of three datagrams that arrive outside; two have forged sources."""
    deployed.inside(f"rm -f {HEARD}")
    for source, text in (*LIES, (GUEST, "truth")):
        say(deployed, SEND, source, BEYOND, LURE_PORT, text)
    # Datagrams sent before the true one have arrived by then, or never will.
    until = f"until grep -q truth {HEARD}; do sleep 0.05; done"
    return deployed.inside(f"timeout 300 sh -c {shlex.quote(until)}; cat {HEARD}").splitlines()


def addresses_of_host(deployed: DeployedHost) -> tuple[str, ...]:
    """All of the host's addresses but those of its own loopback."""
    links = json.loads(deployed.inside("ip -json -4 address show up"))
    found = [each["local"] for link in links for each in link["addr_info"]]
    return tuple(address for address in found if not address.startswith("127."))


@pytest.fixture(scope="module")
def probes(deployed: DeployedHost) -> Iterator[Probes]:
    """The probes and all listeners; isolation is off only for a moment."""
    setup = [probe_up(FIRST), probe_up(SECOND), beyond_up(), listen("beyond", LURE_PORT)]
    setup += [listen(f"probe-{slot}", *GUEST_PORTS) for slot in (FIRST, SECOND)]
    try:
        deployed.inside("set -e\n" + "\n".join(setup))
        host = addresses_of_host(deployed)
        targets = [(address_of(SECOND), port) for port in GUEST_PORTS]
        targets += [(address, port) for address in host for port in HOST_PORTS]
        targets += [(address, LURE_PORT) for address in (*CLOSED, BEYOND)]
        walled, heard_walled = reached(deployed, targets), heard(deployed)
        deployed.inside("set -e" + WALLS_DOWN)
        bare, heard_bare = reached(deployed, targets, PATIENCE_SECONDS), heard(deployed)
        deployed.inside("set -e" + WALLS_UP)
        yield Probes(deployed, host, walled, bare, heard_walled, heard_bare)
    finally:
        deployed.inside(CLEAR, check=False)
    for slot in (FIRST, SECOND):
        assert "tun type tap" in deployed.inside(f"ip -n slot-{slot} -d link show tap0")
    assert deployed.gate()["ok"]
    assert deployed.plan().changing == []


class TestClosed:
    """Each target is open without firewall and isolation, so these close it."""

    @pytest.mark.parametrize("port", GUEST_PORTS)
    def test_other_vm_cannot_be_reached(self, probes: Probes, port: int) -> None:
        other = (address_of(SECOND), port)
        assert other not in probes.walled
        assert other in probes.bare

    @pytest.mark.parametrize("port", HOST_PORTS, ids=["controller", "ssh"])
    def test_host_services_cannot_be_reached_at_any_address(
        self, probes: Probes, port: int
    ) -> None:
        own = {(address, port) for address in probes.host_addresses}
        assert {(GATEWAY, port), (probes.deployed.lab.address, port)} < own
        assert not own & probes.walled
        assert own <= probes.bare

    @pytest.mark.parametrize("address", CLOSED)
    def test_private_networks_cannot_be_reached(self, probes: Probes, address: str) -> None:
        assert (address, LURE_PORT) not in probes.walled
        assert (address, LURE_PORT) in probes.bare

    def test_spoofed_source_addresses_are_dropped(self, probes: Probes) -> None:
        assert [line.split()[1] for line in probes.heard_walled] == ["truth"]
        assert probes.heard_bare[:2] == [" ".join(lie) for lie in LIES]

    def test_vms_cannot_be_reached_from_outside(self, probes: Probes) -> None:
        """A route to the slots' network over the host does not help either."""
        argv = ["ip", "netns", "exec", "beyond", "/usr/bin/python3", "-c", CONNECT]
        targets = [(address_of(SECOND), port) for port in GUEST_PORTS]
        question = json.dumps([SILENCE_SECONDS, targets])
        assert json.loads(probes.deployed.inside(shlex.join([*argv, question]))) == []


class TestLabGateway:
    def test_lab_gateway_is_open_to_host_and_closed_to_vms(self, probes: Probes) -> None:
        gateway = probes.deployed.lab.gateway
        with socket.create_server((gateway, 0)) as server:
            server.settimeout(60)
            target = (gateway, server.getsockname()[1])
            assert reached(probes.deployed, [target]) == frozenset()
            ask = f"import socket; socket.create_connection({target!r}, 60).close()"
            probes.deployed.inside(shlex.join(["/usr/bin/python3", "-c", ask]))
            client, peer = server.accept()
            client.close()
        assert peer[0] == probes.deployed.lab.address


class TestOpen:
    def test_internet_is_reached_with_host_address(self, probes: Probes) -> None:
        assert (BEYOND, LURE_PORT) in probes.walled
        assert probes.say(ASK_PEER, BEYOND, LURE_PORT) == BEYOND_GATEWAY

    def test_datagrams_leave_with_host_address(self, probes: Probes) -> None:
        assert probes.heard_walled == [f"{BEYOND_GATEWAY} truth"]

    @pytest.mark.parametrize("kind", ["udp", "tcp"])
    def test_vm_names_are_resolved(self, probes: Probes, kind: str) -> None:
        said = probes.say(RESOLVE, GATEWAY, f"vm-{SECOND}.vm.internal", kind)
        assert said == f"0 {address_of(SECOND)}"

    @pytest.mark.parametrize("port", GUEST_PORTS)
    def test_host_reaches_ports_of_the_vm(self, probes: Probes, port: int) -> None:
        words = ["/usr/bin/python3", "-c", ASK_PEER, address_of(SECOND), str(port)]
        assert probes.deployed.inside(shlex.join(words)) == GATEWAY
