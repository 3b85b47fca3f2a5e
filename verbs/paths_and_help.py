"""Paths in this checkout, and help texts of options that several verbs share."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "golden" / "recipe.yaml"
SPECS = ROOT / "tests" / "spec" / "image"
LOGS = ROOT / "logs"
LAB_INVENTORY = "inventory/lab.py"

RECIPE_HELP = f"recipe to build (default: {RECIPE.relative_to(ROOT)})"
IMAGE_HELP = "an image's digest or the start of it, or: golden, previous, latest"
JSON_HELP = "answer as JSON on stdout"
LAB_HELP = "which lab (default: POLYDEV_LAB, or dev)"
INVENTORY_HELP = f"inventory file (default: {LAB_INVENTORY})"
HOST_HELP = "one host of an inventory that has several"
MOST_SHOWN = 50
LIMIT_HELP = f"how many of the newest (default: {MOST_SHOWN})"


def lab_name() -> str:
    """Return the name of the lab that verbs use if none is named."""
    # An empty variable counts as not set, as those of folders do.
    return os.environ.get("POLYDEV_LAB") or "dev"
