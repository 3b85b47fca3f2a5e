"""Verbs about the controller's releases."""

from __future__ import annotations

from polydev.hosttool import releases
from polydev.hosttool.busy import alone
from polydev.hosttool.verbs import ID, Call, Verb, argument, required


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


VERBS = (
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
)
