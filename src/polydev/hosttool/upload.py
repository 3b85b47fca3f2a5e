"""How a file gets to a host: over standard input into a folder of root's, then one rename.

This is shell, for a host that may have no tool yet, run by root on behalf of the operator. Nothing
passes through /tmp, where other users of the host could read it or put a file of theirs before it.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from polydev.durable import unfinished

SCRIPT = """\
set -eu
umask 077
fresh={fresh}
trap 'rm -rf "$fresh"' EXIT
trap 'exit 1' HUP INT TERM PIPE
rm -rf "$fresh"
base64 -d >"$fresh" || :
if [ "$(sha256sum <"$fresh")" != "{digest}  -" ]; then
    echo {path}: it did not arrive whole >&2
    exit 1
fi
chown {owner} "$fresh"
chmod {mode} "$fresh"
mv -fT "$fresh" {path}"""


@dataclass(frozen=True)
class Upload:
    """A shell command, and what it reads from its standard input; that is never shown."""

    command: str
    input: str = field(repr=False)


def file_upload(path: str, data: bytes, *, mode: str, owner: str = "root:root") -> Upload:
    """Return what puts a file in its place: readable by root alone until it is whole and owned.

    A connection that is cut leaves what was there before, because base64 takes the end of its
    input for the end of the file, and only the checksum tells.
    """
    command = SCRIPT.format(
        fresh=shlex.quote(str(unfinished(Path(path)))),
        digest=hashlib.sha256(data).hexdigest(),
        path=shlex.quote(path),
        owner=owner,
        mode=mode,
    )
    return Upload(command, base64.b64encode(data).decode() + "\n")
