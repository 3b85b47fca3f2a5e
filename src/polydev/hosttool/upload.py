"""The upload of a file to a host: over standard input into root's folder, then one rename.

This is a shell script, since the host may have no tool yet; root runs it for the operator. Nothing
is stored in /tmp, where other users of the host could read it or create a file of that name first.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from polydev.durable_files import unfinished

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
    """A shell command and its standard input, which is never shown."""

    command: str
    input: str = field(repr=False)


def file_upload(path: str, data: bytes, *, mode: str, owner: str = "root:root") -> Upload:
    """Return the upload of a file, which only root can read until it is complete and owned.

    A lost connection leaves the former file: base64 takes the end of its input for the end of the
    file, so the checksum is compared.
    """
    command = SCRIPT.format(
        fresh=shlex.quote(str(unfinished(Path(path)))),
        digest=hashlib.sha256(data).hexdigest(),
        path=shlex.quote(path),
        owner=owner,
        mode=mode,
    )
    return Upload(command, base64.b64encode(data).decode() + "\n")
