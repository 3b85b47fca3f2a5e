"""The id of the running release, which its deployment wrote beside the venv."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

log = logging.getLogger(__name__)


def release_id(file: Path | None) -> str | None:
    """Return the id in release.json; None outside of a deployed release."""
    path = file or Path(sys.prefix).parent / "release.json"
    try:
        found = json.loads(path.read_text())["id"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("cannot read release file %s: %s", path, error)
        return None
    return str(found)
