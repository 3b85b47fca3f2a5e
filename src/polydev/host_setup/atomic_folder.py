"""A folder that appears under its name only when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill; it is renamed to `folder` at the end, unless that exists by then."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        yield scratch
        if not folder.is_dir():
            scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
