"""Users as sysusers.d declares them: made, and set back where somebody changed one by hand."""

from __future__ import annotations

import shlex

from pyinfra.api.command import StringCommand
from pyinfra.context import host

from polydev.deploys.operations import TOOL, told
from polydev.deploys.typed import Commands, operation


@operation
def accounts_as_in(differences: list[str] | None, document: str) -> Commands:
    """The users of a host.json are there as declared; `differences` are what the host tool found.

    Without its word all of them are made, which changes none that is as it should be. The file of
    the document comes later: it names groups that these users bring.
    """
    if differences == []:
        host.noop("all users are as they should be")
        return
    told("\n".join(differences or ["+ users"]))
    given = f"printf %s {shlex.quote(document)}"
    yield StringCommand(f"{given} | {TOOL} accounts mend --host /dev/stdin")
