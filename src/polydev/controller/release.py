"""Which release this is: what the deployment wrote beside the venv that runs."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

log = logging.getLogger(__name__)


def release_id(file: Path | None) -> str | None:
    """The release's id from its release.json; None outside of a deployed release."""
    path = file or Path(sys.prefix).parent / "release.json"
    try:
        found = json.loads(path.read_text())["id"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("release file %s cannot be used: %s", path, error)
        return None
    return str(found)
