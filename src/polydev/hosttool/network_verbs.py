"""Verbs of the host's network: slots, bridge, firewall."""

from __future__ import annotations

from pathlib import Path

from polydev.hosttool import network_repair, network_state, network_watch, slot_network
from polydev.hosttool.verb import Call, HostVerb, argument
from polydev.hosttool.verb_lock import lock_slot

SLOT = argument("number", type=int, help="number of the slot")
DECLARED = argument(
    "--host",
    type=Path,
    default=slot_network.HOST_FILE,
    help=f"what declares them (default: {slot_network.HOST_FILE})",
)


def slot_up(call: Call) -> object:
    number = call.arguments.number
    with lock_slot(call.paths, number, f"slot up {number}"):
        return slot_network.up(number)


def slot_down(call: Call) -> object:
    number = call.arguments.number
    with lock_slot(call.paths, number, f"slot down {number}"):
        return slot_network.down(number)


def slot_list(call: Call) -> object:
    return slot_network.existing_slots()


def slot_mend(call: Call) -> object:
    number = call.arguments.number
    with lock_slot(call.paths, number, f"slot mend {number}"):
        return network_repair.mend_slot(number)


def network_check(call: Call) -> object:
    host = slot_network.read_host(call.arguments.host)
    return network_state.as_document(network_state.check(host))


def watch_network(call: Call) -> object:
    network_watch.watch(call.arguments.seconds)
    return None


def network_mend(call: Call) -> object:
    return network_repair.mend_bridge()


VERBS = (
    HostVerb("slot up", "Create the network of one VM", slot_up, (SLOT,)),
    HostVerb("slot down", "Remove the network of one VM", slot_down, (SLOT,)),
    HostVerb("slot list", "List the slots that exist", slot_list),
    HostVerb("slot mend", "Correct a slot, also under a running VM", slot_mend, (SLOT,)),
    HostVerb(
        "network check",
        "Show where bridge, firewall and slots are not as declared",
        network_check,
        (DECLARED,),
    ),
    HostVerb(
        "network watch",
        f"Check again and again, and write the result to {network_watch.REPORT}",
        watch_network,
        (
            argument(
                "--seconds",
                type=float,
                default=network_watch.EVERY_SECONDS,
                help=f"from one check to the next ({network_watch.EVERY_SECONDS:g})",
            ),
        ),
    ),
    HostVerb("network mend", "Correct the bridge", network_mend),
)
