"""Scripts, styles and images of the pages, served from memory.

The URL of each file contains a digest of all files. So browsers can cache files for ever, and
modules that import each other by relative URLs are always of one release.
"""

from __future__ import annotations

import hashlib
import mimetypes
from functools import cached_property
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from polydev.controller.url_paths import STATIC_PREFIX
from polydev.controller.web.compressed_content import Content

OWN = Path(__file__).parent / "static"
PACKED = Path(__file__).parent / "vendor"
FOREVER = "public, max-age=31536000, immutable"
TYPES = {".js": "text/javascript", ".svg": "image/svg+xml"}
DIGEST_CHARACTERS = 16
ZIP_LEVEL = 9


class Assets:
    """Our own files, and third-party files in `packed` (None: those in the wheel).

    They are read at the first request.
    """

    def __init__(self, packed: Path | None = None) -> None:
        self._folders = (OWN, packed or PACKED)

    @cached_property
    def files(self) -> dict[str, Content]:
        """All files by name, such as `novnc/core/rfb.js`."""
        return {
            file.relative_to(folder).as_posix(): _content(file)
            for folder in self._folders
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }

    @cached_property
    def digest(self) -> str:
        total = hashlib.sha256()
        for name, asset in self.files.items():
            total.update(f"{hashlib.sha256(asset.plain).hexdigest()}  {name}\n".encode())
        return total.hexdigest()[:DIGEST_CHARACTERS]

    def url(self, name: str) -> str:
        """Return the path of a file. Raises KeyError for an unknown one."""
        if name not in self.files:
            raise KeyError(f"the pages have no file {name}")
        return f"{STATIC_PREFIX}{self.digest}/{name}"

    def answer(self, request: Request, digest: str, name: str) -> Response:
        """Return a file; 404 for an unknown one, and for one of another release."""
        asset = self.files.get(name)
        if asset is None or digest != self.digest:
            return Response(status_code=404)
        headers = {"Cache-Control": FOREVER, "Cross-Origin-Resource-Policy": "same-origin"}
        return asset.answer(request, headers)


def _content(file: Path) -> Content:
    guessed, _ = mimetypes.guess_type(file.name)
    media_type = TYPES.get(file.suffix) or guessed or "application/octet-stream"
    return Content.of(file.read_bytes(), media_type, ZIP_LEVEL)
