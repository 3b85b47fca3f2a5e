"""Verbs about the deployment lock."""

from __future__ import annotations

from polydev.hosttool import lock
from polydev.hosttool.holding import hold
from polydev.hosttool.verbs import ID, Call, Verb, argument, required


def lock_hold(call: Call) -> object:
    arguments = call.arguments
    document = {"id": arguments.id, "owner": arguments.owner, "purpose": arguments.purpose}
    return hold(call.paths, arguments.seconds, document, again=arguments.again)


def lock_show(call: Call) -> object:
    return lock.show(call.paths)


def lock_break(call: Call) -> object:
    return lock.break_lock(call.paths)


VERBS = (
    Verb(
        "lock hold",
        "Hold the deployment lock until `release` or the end of stdin",
        lock_hold,
        (
            ID,
            required("--owner", help="who deploys"),
            required("--purpose", help="what for"),
            required("--seconds", type=int, help="let go after so long without a line on stdin"),
            argument(
                "--again",
                action="store_true",
                help="take over from a holder of the same deployment, whose connection was lost",
            ),
        ),
    ),
    Verb("lock show", "Whose the lock is, and whether they live", lock_show),
    Verb("lock break", "End the lock's holder and remove the lock", lock_break),
)
