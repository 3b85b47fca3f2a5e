"""Verbs about what the host has: its slots, images and releases, and whether all is well."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from polydev.hosttool import (
    accounts,
    apt_locks,
    database_verbs,
    gate,
    images,
    look,
    network_state,
    permissions,
    polkit,
    releases,
    reserve,
    settings,
    slots,
)
from polydev.hosttool.busy import alone, alone_with_slot
from polydev.hosttool.verbs import ID, LIMITS, Call, Verb, argument, required

SLOT = argument("number", type=int, help="number of the slot")
DECLARED = argument(
    "--host",
    type=Path,
    default=slots.HOST_FILE,
    help=f"what declares them (default: {slots.HOST_FILE})",
)
DIGEST = required("--digest", help="digest of an image")


def slot_up(call: Call) -> object:
    number = call.arguments.number
    with alone_with_slot(call.paths, number, f"slot up {number}"):
        return slots.up(number)


def slot_down(call: Call) -> object:
    number = call.arguments.number
    with alone_with_slot(call.paths, number, f"slot down {number}"):
        return slots.down(number)


def slot_list(call: Call) -> object:
    return slots.there()


def slot_mend(call: Call) -> object:
    number = call.arguments.number
    with alone_with_slot(call.paths, number, f"slot mend {number}"):
        return network_state.mend_slot(number)


def network_check(call: Call) -> object:
    host = slots.read_host(call.arguments.host)
    return network_state.as_document(network_state.check(host))


def network_watch(call: Call) -> object:
    network_state.watch(call.arguments.seconds)
    return None


def network_mend(call: Call) -> object:
    return network_state.mend_bridge()


def accounts_mend(call: Call) -> object:
    return accounts.mend(accounts.accounts_of(slots.read_host(call.arguments.host)))


def permissions_mend(call: Call) -> object:
    return permissions.mend(permissions.trees(call.paths))


def polkit_mend(call: Call) -> object:
    return polkit.mend(slots.read_host(call.arguments.host), call.paths.root)


def settings_mend(call: Call) -> object:
    host: Any = slots.read_host(call.arguments.host)
    return settings.mend(host["settings"], call.paths.root)


def reserve_keep(call: Call) -> object:
    reserve.keep_reserve(call.paths)
    return {"kept": str(call.paths.reserve)}


def look_at_host(call: Call) -> object:
    return look.look(call, call.document())


def image_list(call: Call) -> object:
    return images.listing(call.paths.images)


def image_add(call: Call) -> object:
    digest = call.arguments.digest
    with alone(call.paths, f"image add {digest[:12]}"):
        return images.add(digest, call.paths.images)


def image_golden(call: Call) -> object:
    digest = call.arguments.digest
    with alone(call.paths, f"image golden {digest[:12]}"):
        return images.make_golden(digest, call.paths.images)


def image_prune(call: Call) -> object:
    with alone(call.paths, "image prune"):
        return images.prune(call.paths, call.paths.images)


def apt_locked(call: Call) -> object:
    return apt_locks.held(call.paths)


def release_create(call: Call) -> object:
    arguments = call.arguments
    with alone(call.paths, f"release create {arguments.id}"):
        return releases.create(
            arguments.id, arguments.digest, arguments.commit, call.paths, call.paths.controller
        )


def release_migrate(call: Call) -> object:
    arguments = call.arguments
    with alone(call.paths, f"release migrate {arguments.id}"):
        return releases.migrate(arguments.id, call.paths, arguments.user)


def release_prune(call: Call) -> object:
    with alone(call.paths, "release prune"):
        return releases.prune(call.arguments.keep, call.paths, call.paths.controller)


def health(call: Call) -> object:
    return gate.gate(call.systemd, call.arguments.seconds)


HOST_VERBS = (
    Verb("slot up", "Make the network of one VM", slot_up, (SLOT,)),
    Verb("slot down", "Remove it", slot_down, (SLOT,)),
    Verb("slot list", "The slots that exist now", slot_list),
    Verb("slot mend", "Set a slot as declared, also under a running VM", slot_mend, (SLOT,)),
    Verb(
        "network check",
        "Where bridge, firewall and slots are not as declared",
        network_check,
        (DECLARED,),
    ),
    Verb(
        "network watch",
        f"Check without end, and write the result to {network_state.REPORT}",
        network_watch,
        (
            argument(
                "--seconds",
                type=float,
                default=network_state.EVERY_SECONDS,
                help=f"from one check to the next ({network_state.EVERY_SECONDS:g})",
            ),
        ),
    ),
    Verb("accounts mend", "Set our users as declared", accounts_mend, (DECLARED,)),
    Verb("permissions mend", "Let only root write to what it trusts", permissions_mend),
    Verb("polkit mend", "Remove rules of others about our users", polkit_mend, (DECLARED,)),
    Verb(
        "settings mend",
        "Take out what other files set against ours",
        settings_mend,
        (DECLARED,),
    ),
    Verb("reserve keep", "Keep room for restores on a full disk", reserve_keep),
    Verb("look", "Where the host is not as the document on stdin declares it", look_at_host),
    Verb("network mend", "Set the bridge as declared", network_mend),
    Verb("image list", "Whole images, and the golden one", image_list),
    Verb("image add", "Take an image that arrived into the store", image_add, (DIGEST,)),
    Verb("image golden", "Make an image golden", image_golden, (DIGEST,)),
    Verb("image prune", "Remove images that nothing needs", image_prune),
    Verb("apt locks", "Which processes hold locks of apt or dpkg", apt_locked),
    Verb(
        "release create",
        "Make a release of the controller from what arrived for it",
        release_create,
        (
            ID,
            required("--digest", help="hash of its sources"),
            required("--commit", help="the commit that it was made from"),
        ),
    ),
    Verb(
        "release migrate",
        "Bring the database to what a release needs",
        release_migrate,
        (ID, argument("--user", help="as whom (the owner of the controller's home)")),
    ),
    Verb(
        "release prune",
        "Remove releases that nothing needs",
        release_prune,
        (required("--keep", type=int, help="how many of the newest stay in any case"),),
    ),
    Verb(
        "controller",
        "The controller's own command line, as its user and with its secrets",
        database_verbs.controller,
        (argument("words", nargs=argparse.REMAINDER, help="a verb of master-controller"),),
    ),
    Verb(
        "database check",
        "See that the database at the address on stdin can be used",
        database_verbs.check,
    ),
    Verb("database backup", "Write a copy of the database to stdout", database_verbs.backup),
    Verb(
        "database restore",
        "Replace the database by the copy on stdin",
        database_verbs.restore,
        (argument("--stop", action="store_true", help="stop the controller meanwhile"), *LIMITS),
    ),
    Verb(
        "database move",
        "Copy SQLite into PostgreSQL while the controller is stopped, and start it with that",
        database_verbs.move,
        (
            required("--release", help="id of the release that is to run"),
            required("--backup", help="id of the backup to go back to"),
            argument("--replace", action="store_true", help="delete what PostgreSQL has of ours"),
            *LIMITS,
        ),
    ),
    Verb(
        "health",
        "The health gate: check until all is well, or time is up",
        health,
        (required("--seconds", type=float, help="time until what is wrong counts as wrong"),),
    ),
)
