"""Verbs about a deployment as such: its record, and whether its operations may run."""

from __future__ import annotations

from polydev.hosttool import operations, records
from polydev.hosttool.paths import require_id
from polydev.hosttool.verbs import ID, Call, Verb


def record_write(call: Call) -> object:
    return records.write(call.paths, call.document())


def record_list(call: Call) -> object:
    return {"records": records.records(call.paths)}


def record_show(call: Call) -> object:
    return records.show(call.paths, call.arguments.id)


def operations_permit(call: Call) -> object:
    return operations.permit(call.paths, call.systemd, require_id(call.arguments.id))


def operations_stop(call: Call) -> object:
    return {"stopped": operations.stop(call.paths, call.systemd)}


VERBS = (
    Verb("record write", "Write the record on stdin", record_write),
    Verb("record list", "All records, newest first", record_list),
    Verb("record show", "One record", record_show, (ID,)),
    Verb(
        "operations permit",
        "Let a deployment's operations run, and end those of any other",
        operations_permit,
        (ID,),
    ),
    Verb("operations stop", "End the operations of every deployment", operations_stop),
)
