"""Ids of deployments, made of time and commit.

They are for people; the order of deployments is that of the host's numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from polydev.errors import ConfigError
from polydev.processes import Completed, run

NO_COMMIT = "0000"
# With these variables, as in a hook, git would use another repository.
GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def new_deployment_id(root: Path = Path(), clock: Callable[[], datetime] = utc_now) -> str:
    """Return `YYYYMMDD_HHMMSS-<short commit>` in UTC; with `-dirty` if the checkout has changes."""
    return f"{clock():%Y%m%d_%H%M%S}-{commit_of(root) or NO_COMMIT}"


def commit_of(root: Path) -> str | None:
    """Return the checkout's short commit, with `-dirty` if it has changes, or None."""
    found = _git(root, "rev-parse", "--show-prefix", "--short=8", "HEAD")
    *prefix, commit = found.stdout.splitlines() or [""]
    # A prefix: this folder is inside another repository, whose commits do not describe it.
    if found.status != 0 or any(prefix):
        return None
    changes = _git(root, "status", "--porcelain", "--untracked-files=normal")
    is_clean = changes.status == 0 and not changes.stdout.strip()
    return commit.strip() if is_clean else f"{commit.strip()}-dirty"


def contains(root: Path, commit: str) -> bool | None:
    """Return whether the checkout's commit is that one or descends from it; None if unknown."""
    found = _git(root, "merge-base", "--is-ancestor", commit.removesuffix("-dirty"), "HEAD")
    return {0: True, 1: False}.get(found.status)


def require_commit(root: Path) -> None:
    """Raise ConfigError if there is no commit to name a deployment by."""
    if commit_of(root) is None:
        raise ConfigError(
            f"{root} is not a git checkout with a commit, and deployments are named by it",
            "clone the repository, or make this one: git init, git add ., git commit",
        )


def _git(root: Path, *words: str) -> Completed:
    """Ask git about this folder alone, whoever owns it: its code runs here anyway."""
    apart = [word for name in GIT_VARIABLES for word in ("-u", name)]
    trusted = f"safe.directory={root.resolve()}"
    return run(["env", *apart, "git", "-c", trusted, "-C", root, *words], check=False)
