"""Folders that get their names once they are whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` at the end; another's that came first stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        yield scratch
        if not folder.is_dir():
            scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
