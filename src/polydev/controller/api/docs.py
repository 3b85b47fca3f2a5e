"""The documentation: OpenAPI, and a page of it that loads nothing from other sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from html import escape
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse, Response

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.auth.authentication import BEARER

METHODS = ("get", "post", "put", "patch", "delete")
# The page has no script and loads nothing; this policy enforces it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code { font-family: ui-monospace, monospace }
h2 { font-size: 1rem; border-top: 1px solid #ccc; padding-top: 1rem }
td, th { text-align: left; vertical-align: top; padding: 0 1rem 0 0; font-weight: normal }
"""


def routes(openapi: Callable[[], dict[str, Any]]) -> APIRouter:
    """`openapi` returns the description of the application, which is rendered once."""
    router = APIRouter(tags=["documentation"], dependencies=[BEARER])
    document = cache(lambda: JSONResponse(openapi()).body)
    document_page = cache(lambda: page(openapi()))

    @router.get(
        "/openapi.json",
        summary="This API as OpenAPI",
        response_class=JSONResponse,
        responses=error_responses(),
    )
    async def get_openapi() -> Response:
        return Response(document(), media_type="application/json")

    @router.get(
        "/docs",
        summary="This API as a page",
        description="Browsers may send the token as `?access_token=`.",
        response_class=HTMLResponse,
        responses=error_responses(),
    )
    async def get_docs() -> HTMLResponse:
        headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(document_page(), headers=headers)

    return router


def page(described: dict[str, Any]) -> str:
    """Return the calls of an OpenAPI document as HTML."""
    info = described["info"]
    title = escape(f"{info['title']} {info['version']}")
    calls = "\n".join(_calls(described))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        "<p>Every call but health needs <code>Authorization: Bearer TOKEN</code>. "
        "Schemas and examples are in <code>/openapi.json</code>.</p>\n"
        f"{calls}\n</body></html>\n"
    )


def _calls(described: dict[str, Any]) -> Iterator[str]:
    for path, operations in described["paths"].items():
        for method in METHODS:
            if method in operations:
                yield _call(f"{method.upper()} {path}", operations[method])


def _call(name: str, operation: dict[str, Any]) -> str:
    said = [operation.get("summary", ""), operation.get("description", "")]
    texts = "".join(f"<p>{escape(text)}</p>" for text in said if text)
    rows = [
        (f"{each['in']} {each['name']}", each.get("description", ""))
        for each in operation.get("parameters", ())
    ]
    rows += [
        (status, answer["description"]) for status, answer in sorted(operation["responses"].items())
    ]
    table = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td>{escape(text)}</td></tr>" for key, text in rows
    )
    return f"<h2><code>{escape(name)}</code></h2>{texts}<table>{table}</table>"
