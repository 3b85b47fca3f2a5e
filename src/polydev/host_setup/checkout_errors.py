"""Errors for a checkout whose files change while a deployment reads them. Pure."""

from __future__ import annotations

from pathlib import Path

from polydev.errors import ConfigError

PACKAGE = "polydev"


def missing_part_error(
    error: OSError | ImportError, root: Path | None = None
) -> ConfigError | None:
    """Return the error if a file or module of the checkout is missing; else None."""
    root = (root or Path.cwd()).resolve()
    if isinstance(error, ImportError):
        name = error.name or ""
        return changed(f"module {name}") if name.partition(".")[0] == PACKAGE else None
    file = Path(str(error.filename or "")).absolute()
    return changed(str(file)) if file.is_relative_to(root) else None


def changed(what: str) -> ConfigError:
    """Return the error for a file or module that a deployment did not find."""
    return ConfigError(
        f"{what} is missing: the checkout changed while it was deployed",
        "run it again; if it is still missing, see `git status`",
    )
