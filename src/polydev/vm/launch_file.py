"""What a VM of a slot is to be, as whoever wants it writes it down for the slot's unit.

controller --launch_file_text--> launch.json --read_launch_file--> the unit's launcher
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from polydev.errors import VmError
from polydev.vm.untrusted_files import open_untrusted

LAUNCH_FILE = "launch.json"
CURRENT = "current"
MAX_LAUNCH_FILE_BYTES = 64 * 1024
# These become words of command lines, where a blank or a comma would begin another one.
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LaunchFile:
    """One VM. `image` is the folder of the image that it boots; sizes as their names say.

    template    the key of the template that it is resumed from, instead of a boot
    """

    vm_id: str
    session_id: str | None
    image: str
    image_digest: str
    cpus: int
    memory_mib: int
    translation_cache_mib: int
    template: str | None = None
    tap: str = "tap0"


def launch_file_text(launch_file: LaunchFile) -> str:
    return json.dumps(asdict(launch_file), indent=1) + "\n"


def read_launch_file(file: Path) -> LaunchFile:
    """Raises VmError naming the file and what is wrong in it."""
    try:
        # The controller's own link `current` may be on the way there.
        with open_untrusted(file.parent.resolve() / file.name) as descriptor:
            found = json.loads(os.pread(descriptor, MAX_LAUNCH_FILE_BYTES, 0))
    except OSError as error:
        raise VmError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise VmError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise VmError(f"{file} holds no object")
    names = {each.name for each in fields(LaunchFile)}
    if (wrong := sorted(names ^ set(found))) != []:
        raise VmError(f"{file}: missing or unknown: {', '.join(wrong)}")
    bad = [name for name, value in found.items() if not _is_valid(name, value)]
    if bad:
        raise VmError(f"{file}: not a valid {bad[0]}: {found[bad[0]]!r}")
    return LaunchFile(**found)


def _is_valid(name: str, value: Any) -> bool:
    if name in ("cpus", "memory_mib", "translation_cache_mib"):
        return type(value) is int and value > 0
    if name in ("session_id", "template") and value is None:
        return True
    if not isinstance(value, str):
        return False
    if name == "image":
        return value.startswith("/") and "," not in value
    form = _DIGEST if name in ("image_digest", "template") else _ID
    return form.fullmatch(value) is not None
