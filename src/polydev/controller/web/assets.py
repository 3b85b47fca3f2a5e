"""Scripts, styles and pictures of the pages, served from memory under a name that never changes.

The address of each file has a digest of all of them, so a browser may keep it for ever, and
modules that import each other by relative addresses stay of one release.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

PREFIX = "/static/"
OWN = Path(__file__).parent / "static"
PACKED = Path(__file__).parent / "vendor"
FOREVER = "public, max-age=31536000, immutable"
TYPES = {".js": "text/javascript", ".svg": "image/svg+xml"}
TEXTS = ("text/", "image/svg+xml", "application/json")
DIGEST_CHARACTERS = 16


@dataclass(frozen=True)
class Asset:
    """A file; `zipped` is its content in gzip, None where that is not worth it."""

    content: bytes
    media_type: str
    zipped: bytes | None


class Assets:
    """Our own files, and those of others in `packed` (None: as the wheel brings them).

    Nothing is read before it is asked for.
    """

    def __init__(self, packed: Path | None = None) -> None:
        self._folders = (OWN, packed or PACKED)

    @cached_property
    def files(self) -> dict[str, Asset]:
        """Each file by its name, such as `novnc/core/rfb.js`."""
        return {
            file.relative_to(folder).as_posix(): _asset(file)
            for folder in self._folders
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }

    @cached_property
    def digest(self) -> str:
        total = hashlib.sha256()
        for name, asset in self.files.items():
            total.update(f"{hashlib.sha256(asset.content).hexdigest()}  {name}\n".encode())
        return total.hexdigest()[:DIGEST_CHARACTERS]

    def url(self, name: str) -> str:
        """Where a page finds it. Raises KeyError for a file that there is not."""
        if name not in self.files:
            raise KeyError(f"the pages have no file {name}")
        return f"{PREFIX}{self.digest}/{name}"

    def answer(self, request: Request, digest: str, name: str) -> Response:
        """404 for what there is not, and for another release's file, whose content differs."""
        asset = self.files.get(name)
        if asset is None or digest != self.digest:
            return Response(status_code=404)
        headers = {"Cache-Control": FOREVER, "Cross-Origin-Resource-Policy": "same-origin"}
        if asset.zipped is None:
            return Response(asset.content, media_type=asset.media_type, headers=headers)
        headers["Vary"] = "Accept-Encoding"
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(asset.content, media_type=asset.media_type, headers=headers)
        headers["Content-Encoding"] = "gzip"
        return Response(asset.zipped, media_type=asset.media_type, headers=headers)


def _asset(file: Path) -> Asset:
    content = file.read_bytes()
    guessed, _ = mimetypes.guess_type(file.name)
    media_type = TYPES.get(file.suffix) or guessed or "application/octet-stream"
    zipped = gzip.compress(content, 9, mtime=0) if media_type.startswith(TEXTS) else None
    return Asset(content, media_type, zipped)
