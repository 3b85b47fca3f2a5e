"""The host tool as one file that the system's Python runs.

`python -m polydev.hosttool.zipapp OUT` writes it. The bytes depend on the sources only, so equal
checksums mean equal tools.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

SHEBANG = b"#!/usr/bin/python3 -I\n"
MAIN = """\
import sys

from polydev.hosttool.cli import main

sys.exit(main())
"""
# Modules of `polydev` itself that the tool imports; like it, they import nothing of ours.
SHARED = ("durable_files.py", "host_layout.py", "image_layout.py")
TIME = (1980, 1, 1, 0, 0, 0)


def zipapp_bytes(source_folder: Path) -> bytes:
    """Return the program, packed from the sources in `source_folder`, the package hosttool."""
    contents = {"__main__.py": MAIN.encode(), "polydev/__init__.py": b""}
    for path in source_folder.rglob("*.py"):
        name = f"polydev/hosttool/{path.relative_to(source_folder).as_posix()}"
        contents[name] = path.read_bytes()
    for name in SHARED:
        contents[f"polydev/{name}"] = (source_folder.parent / name).read_bytes()
    packed = io.BytesIO()
    packed.write(SHEBANG)
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, wherever it is packed
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return packed.getvalue()


def main(words: list[str]) -> None:
    out = Path(words[0])
    out.write_bytes(zipapp_bytes(Path(__file__).parent))
    out.chmod(0o755)


if __name__ == "__main__":
    main(sys.argv[1:])
