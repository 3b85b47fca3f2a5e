"""The VMs' network as it is now: read from the kernel, compared, watched, corrected in place.

Plans, the health gate, the doctor and the controller's health all use these results. `ip`, `sysctl`
and `nft` read the kernel's state, on the host and in each slot's namespace.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from polydev.hosttool import bridge_facts, ip_output, network_facts, slot_facts, slot_network
from polydev.hosttool.errors import HostError
from polydev.hosttool.network_facts import Difference, Json, KernelState, Lines
from polydev.hosttool.slot_network import MTU, Slot

FIREWALL_FILE = Path("/etc/polydev/firewall.nft")
STAMPS = Path("/run/polydev/config")
REPORT = Path("/run/polydev/network.json")
NFT = Path("/usr/sbin/nft")
LINKS = Path("/sys/class/net")
TABLE = "inet polydev"
EVERY_SECONDS = 10.0
# If the last report is older, the watch hangs or does not run.
FRESH_SECONDS = 60.0
# The most that it uses of one core: a host with many slots is read less often, but often enough
# for a fresh report.
MOST_LOAD = 0.1
LONGEST_REST_SECONDS = FRESH_SECONDS / 2
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
    here = _read_host(bridge)
    there = _numbers(slot_network.existing_slots()["slots"])
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
    for number in _numbers(host["slots"]):
        found += _check_slot(slot_network.slot_of(number, host), host, here)
    return found


def _numbers(value: object) -> list[int]:
    return [int(each) for each in value] if isinstance(value, list) else []


def _check_slot(slot: Slot, host: Json, here: KernelState) -> list[Difference]:
    part = slot.namespace
    declared, live = slot_facts.declared_port(slot), slot_facts.live_port(slot, here.links)
    if is_kept(slot.number, host):
        return network_facts.differences(part, declared, live)
    inside = _read_slot(slot)
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
    return tuple(_ask(words, rules).splitlines())


def _read_host(bridge: str) -> KernelState:
    stations = f"bridge -json fdb show br {bridge} 2>/dev/null || echo '[]'"
    script = f"{READ}nft -s list table {TABLE} 2>/dev/null\necho '{MARK}'\n{stations}"
    settings = [network_facts.FORWARDING, *bridge_facts.bridge_settings(bridge)]
    return _reading(["sh", "-c", script, "sh", *settings])


def _read_slot(slot: Slot) -> KernelState | None:
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
    answers, settings, rules, *stations = _ask(argv, QUERIES).split(f"{MARK}\n")
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


def _ask(argv: list[str], text: str) -> str:
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


# Watching


def watch(seconds: float = EVERY_SECONDS) -> None:
    """Check again and again, and write the newest result to REPORT, which everybody can read."""
    while True:
        began, used = time.monotonic(), _cpu_seconds()
        _write(_report())
        left = seconds - (time.monotonic() - began)
        time.sleep(rest_seconds(left, _cpu_seconds() - used))


def rest_seconds(left: float, cpu_seconds: float) -> float:
    """Return how long to rest after a check that took so much CPU time.

    `left` is the time to the next check. On a busy host a check takes long without using a CPU.
    """
    return max(left, min(cpu_seconds / MOST_LOAD, LONGEST_REST_SECONDS))


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of the programs that it has run."""
    return sum(os.times()[:4])


def _report() -> dict[str, object]:
    """Check once; `at` is the time since the machine's start, which nobody can set."""
    try:
        found = as_document(check(slot_network.read_host()))
    except (HostError, OSError, ValueError, KeyError) as error:
        found = {"ok": False, "error": getattr(error, "message", str(error)), "differences": []}
    return {"at": time.monotonic(), **found}


def watch_differences() -> list[str]:
    """Return a diff about the age of the watch's report; [] if it is fresh."""
    try:
        age = time.monotonic() - float(json.loads(REPORT.read_bytes())["at"])
    except FileNotFoundError:
        found = "none was written since the host's start"
    except (ValueError, KeyError, TypeError, OSError) as error:
        found = f"it cannot be read: {error}"
    else:
        if 0 <= age <= FRESH_SECONDS:
            return []
        found = f"{age:.0f} s old"
    wanted = f"no more than {FRESH_SECONDS:.0f} s old"
    return [f"- report of the watch: {found}", f"+ report of the watch: {wanted}"]


def _write(report: dict[str, object]) -> None:
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    fresh = REPORT.with_suffix(".new")
    fresh.write_text(json.dumps(report) + "\n")
    fresh.chmod(0o644)
    fresh.replace(REPORT)


# Correcting


def mend_bridge() -> dict[str, object]:
    """Configure the bridge as declared; networkd sets its addresses and routes.

    Other addresses are deleted here, since networkd keeps link-local ones of IPv6.
    """
    host = slot_network.read_host()
    bridge = host["bridge"]
    if not isinstance(bridge, dict):
        raise HostError("no-host", f"{slot_network.HOST_FILE} names no bridge", "deploy this host")
    name = str(bridge["name"])
    here = _read_host(name)
    there = _numbers(slot_network.existing_slots()["slots"])
    live = bridge_facts.live_bridge(host, here, there)
    if name not in live:
        _make_bridge(name)
    # First the stations: the kernel drops them if the bridge's address changes as ports leave.
    stations = map(bridge_facts.station, bridge_facts.static_stations(here))
    _ask(["bridge", "-batch", "-"], "".join(f"fdb delete {each} master\n" for each in stations))
    commands = [f"neighbour delete {each}" for each in live["neighbours"]["permanent"]]
    # Only what differs: a kernel may lack an option, and then refuses its default too.
    commands += [
        f"link set {name} type bridge {option} {value}"
        for option, value in bridge_facts.BRIDGE_OPTIONS.items()
        if live.get(name, {}).get(option, (value,)) != (value,)
    ]
    commands += [f"link set {port} nomaster" for port in bridge_facts.foreign_ports(live)]
    addresses = live.get(name, {}).get("addresses", ())
    own = IPv4Interface(bridge["address"])
    commands += [f"address delete {each} dev {name}" for each in addresses if each != str(own)]
    declared = bridge_facts.routes_to_vms(name, own)
    routes = live["routes"][f"to {own.network}"]
    commands += [f"route delete {route}" for route in routes if route not in declared]
    rules = bridge_facts.rules_before_main(host, here)
    commands += [f"rule delete {ip_output.rule_words(rule)}" for rule in rules]
    if bridge_facts.BY_MAIN not in live["routes"]["policy"]:
        commands.append("rule add priority 32766 lookup main")
    if live.get(name, {}).get("mtu", (MTU,)) != (MTU,):
        commands.append(f"link set {name} mtu {MTU}")
    commands += [f"link set {name} addrgenmode none", f"link set {name} up"]
    _ask(["ip", "-batch", "-"], "".join(f"{each}\n" for each in commands))
    _delete_rules6([], bridge_facts.rules6_of_bridge(host, here))
    settings = [f"{key}={value}" for key, value in bridge_facts.bridge_settings(name).items()]
    _ask(["sysctl", "-q", "-w", *settings], "")
    return {"mended": name}


def _delete_rules6(where: list[str], rules: list[Json]) -> None:
    commands = [f"rule delete {ip_output.rule_words(each)}\n" for each in rules]
    if commands:
        _ask(["ip", "-6", *where, "-batch", "-"], "".join(commands))


def _make_bridge(name: str) -> None:
    try:
        _ask(["ip", "link", "add", name, "type", "bridge"], "")
    except HostError:
        # networkd may have created it meanwhile.
        if not (LINKS / name).exists():
            raise


def mend_slot(number: int) -> dict[str, object]:
    """Configure a slot as declared, under its running VM. Raises HostError `slot-broken`."""
    host: dict[str, Any] = slot_network.read_host()
    slot = slot_network.slot_of(number, host)
    only_port = is_kept(number, host)
    slot_network.mend(slot, only_port=only_port)
    inside = None if only_port else _read_slot(slot)
    if inside is not None:
        live = slot_facts.live_slot(inside)
        down = [f"link set {link} down\n" for link in slot_facts.foreign_links(live)]
        _ask(["ip", "-n", slot.namespace, "-batch", "-"], "".join(down))
        _delete_rules6(["-n", slot.namespace], slot_facts.rules6_of_slot(inside))
    left = _check_slot(slot, host, _read_host(slot.bridge))
    if left:
        raise HostError(
            "slot-broken",
            f"slot {number} cannot be corrected while its VM runs: {left[0].text}",
            "end its session, which `./inv sessions` lists, then deploy again",
        )
    return {"mended": number}
