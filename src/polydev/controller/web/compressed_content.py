"""Content that is compressed once and sent to many."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

TEXTS = ("text/", "image/svg+xml", "application/json")


@dataclass(frozen=True)
class Content:
    """Content without secrets that is sent to many clients.

    zipped      gzip of it; None for media types that are compressed already
    """

    plain: bytes
    media_type: str
    zipped: bytes | None

    @classmethod
    def of(cls, plain: bytes, media_type: str, zip_level: int) -> Content:
        is_text = media_type.startswith(TEXTS)
        zipped = gzip.compress(plain, zip_level, mtime=0) if is_text else None
        return cls(plain, media_type, zipped)

    def answer(self, request: Request, headers: Mapping[str, str] | None = None) -> Response:
        """Return a response, in gzip for clients that accept it."""
        given = dict(headers or {})
        if self.zipped is None:
            return Response(self.plain, media_type=self.media_type, headers=given)
        given["Vary"] = "Accept-Encoding"
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.plain, media_type=self.media_type, headers=given)
        given["Content-Encoding"] = "gzip"
        return Response(self.zipped, media_type=self.media_type, headers=given)
