"""`launch.json`: what the VM of a slot is to be.

The controller writes it (`launch_file_text`), the program of the slot's unit reads it
(`read_launch_file`).
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
# These values become words of command lines, in which a blank or a comma would begin another word.
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LaunchFile:
    """One VM. `image` is the folder of the image that it boots from.

    template    the key of the template that the VM is resumed from; None if it boots
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
    """Read and check a `launch.json`. Raises VmError with the file and what is wrong in it."""
    try:
        # The path may go through the controller's link `current`.
        with open_untrusted(file.parent.resolve() / file.name) as descriptor:
            found = json.loads(os.pread(descriptor, MAX_LAUNCH_FILE_BYTES, 0))
    except OSError as error:
        raise VmError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise VmError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise VmError(f"{file} is not a JSON object")
    names = {each.name for each in fields(LaunchFile)}
    if (wrong := sorted(names ^ set(found))) != []:
        raise VmError(f"{file}: missing or unknown keys: {', '.join(wrong)}")
    bad = [name for name, value in found.items() if not _is_valid(name, value)]
    if bad:
        raise VmError(f"{file}: {bad[0]} is not valid: {found[bad[0]]!r}")
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
