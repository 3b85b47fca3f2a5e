"""The VMs' network as it is now: read from the kernel and compared with what is declared.

Plans, the health gate, the doctor and the controller's health all use these results. `ip`, `sysctl`
and `nft` read the kernel's state, on the host and in each slot's namespace.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Interface
from pathlib import Path

from polydev.hosttool import bridge_facts, network_facts, slot_facts, slot_network
from polydev.hosttool.errors import HostError
from polydev.hosttool.network_facts import Difference, Json, KernelState, Lines
from polydev.hosttool.slot_network import Slot

FIREWALL_FILE = Path("/etc/polydev/firewall.nft")
STAMPS = Path("/run/polydev/config")
NFT = Path("/usr/sbin/nft")
TABLE = "inet polydev"
ANSWER_SECONDS = 30.0
MARK = "---- polydev ----"
QUERIES = "address show\nroute show table all\nrule show\nneighbour show nud permanent\n"
# A placeholder for a slot's address, so that nft lists the rules of one slot only.
ANY_SLOT = IPv4Interface("192.0.2.1/24")
READ = f"""\
ip -json -details -batch -
if test -e /proc/sys/net/ipv6; then ip -6 -json rule show; else echo '[]'; fi
echo '{MARK}'
sysctl -e "$@"
echo '{MARK}'
"""


def check(host: Json) -> list[Difference]:
    """Return the differences of the network from `host`, the content of host.json.

    Of a slot that an older deployment made for a VM that still runs, only the port is compared: the
    VM keeps its network. Raises HostError `network-unread`.
    """
    bridge = str(host["bridge"]["name"])
    here = host_kernel_state(bridge)
    there = numbers_in(slot_network.existing_slots()["slots"])
    live = bridge_facts.live_bridge(host, here, there)
    found = network_facts.differences(
        network_facts.BRIDGE_PART, bridge_facts.declared_bridge(host), live
    )
    kernel = bridge_facts.live_kernel(here.settings)
    found += network_facts.differences(
        network_facts.KERNEL_PART, bridge_facts.declared_kernel(), kernel
    )
    firewall = {"nftables": {"rules": here.rules}}
    declared = {"nftables": {"rules": _listed(FIREWALL_FILE.read_text(), f"table {TABLE}")}}
    found += network_facts.differences(network_facts.FIREWALL_PART, declared, firewall)
    for number in numbers_in(host["slots"]):
        found += check_slot(slot_network.slot_of(number, host), host, here)
    return found


def numbers_in(value: object) -> list[int]:
    return [int(each) for each in value] if isinstance(value, list) else []


def check_slot(slot: Slot, host: Json, here: KernelState) -> list[Difference]:
    part = slot.namespace
    declared, live = slot_facts.declared_port(slot), slot_facts.live_port(slot, here.links)
    if is_kept(slot.number, host):
        return network_facts.differences(part, declared, live)
    inside = slot_kernel_state(slot)
    if inside is None:
        return [
            Difference(part, "namespace", network_facts.MISSING, network_facts.THERE, opens=False)
        ]
    declared = slot_facts.declared_slot(slot, rules_as_listed(slot))
    return network_facts.differences(part, declared, {**live, **slot_facts.live_slot(inside)})


def is_kept(number: int, host: Json) -> bool:
    """Whether a slot was made from an older configuration than the declared one."""
    try:
        stamp = (STAMPS / f"microvm-slot@{number}.service").read_text().strip()
    except OSError:
        return False
    return stamp != str(host.get("slotConfig", stamp))


def rules_as_listed(slot: Slot) -> Lines:
    """Return the slot's rules as this host's nft lists them."""
    anybody = Slot(ANY_SLOT.network.num_addresses - 2, slot.bridge, ANY_SLOT, slot.resolver)
    listed = _listed(slot_network.rules_of(anybody), "ruleset")
    return tuple(line.replace(anybody.address, slot.address) for line in listed)


def _listed(rules: str, what: str) -> Lines:
    return _listed_by(rules, what, NFT.stat().st_mtime_ns if NFT.exists() else 0)


@lru_cache
def _listed_by(rules: str, what: str, _program: int) -> Lines:
    """Load rules in a temporary namespace and return them as nft lists them."""
    words = ["unshare", "--net", "sh", "-c", f"nft -f - && nft -s list {what}"]
    return tuple(run_with_input(words, rules).splitlines())


def host_kernel_state(bridge: str) -> KernelState:
    stations = f"bridge -json fdb show br {bridge} 2>/dev/null || echo '[]'"
    script = f"{READ}nft -s list table {TABLE} 2>/dev/null\necho '{MARK}'\n{stations}"
    settings = [network_facts.FORWARDING, *bridge_facts.bridge_settings(bridge)]
    return _reading(["sh", "-c", script, "sh", *settings])


def slot_kernel_state(slot: Slot) -> KernelState | None:
    """Read a slot's state; None if there is no namespace."""
    namespace = slot_network.NAMESPACES / slot.namespace
    if not os.path.ismount(namespace):
        return None
    enter = ["nsenter", f"--net={namespace}", "sh", "-c", f"{READ}nft -s list ruleset", "sh"]
    try:
        return _reading([*enter, *slot_network.settings_of(slot)])
    except HostError:
        # It may have been removed meanwhile.
        if os.path.ismount(namespace):
            raise
        return None


def _reading(argv: list[str]) -> KernelState:
    answers, settings, rules, *stations = run_with_input(argv, QUERIES).split(f"{MARK}\n")
    links, routes, policy, neighbours, policy6 = _documents(answers)
    values = (line.partition(" = ") for line in settings.splitlines())
    return KernelState(
        # `ip` prints empty objects for what it was not asked for.
        [each for each in links if each],
        routes,
        policy,
        policy6,
        neighbours,
        {key.strip(): value.strip() for key, _, value in values},
        tuple(rules.splitlines()),
        json.loads(stations[0]) if stations else [],
    )


def _documents(text: str) -> Iterator[list[Json]]:
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        found, end = decoder.raw_decode(rest)
        yield found
        rest = rest[end:].strip()


def run_with_input(argv: list[str], text: str) -> str:
    """Return the output of a program that reads `text`. Raises HostError `network-unread`."""
    import subprocess

    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError("network-unread", f"cannot read the network: {error}") from error
    if done.returncode != 0:
        said = done.stderr.strip() or f"status {done.returncode}"
        raise HostError("network-unread", f"cannot read the network: {argv[0]} failed: {said}")
    return done.stdout


def as_document(found: list[Difference]) -> dict[str, object]:
    return {"ok": not found, "differences": [each.as_dict() for each in found]}
