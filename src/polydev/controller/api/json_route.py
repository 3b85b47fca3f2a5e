"""Routes whose bodies are JSON objects with each key once."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from polydev.json_text import RepeatedKey, load_json

UNREADABLE_BODY = "the body is not JSON in UTF-8, or is nested too deeply"


class JsonRoute(APIRoute):
    """A route that refuses a body in which an object has the same key twice."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


class _JsonRequest(Request):
    async def json(self) -> Any:
        """Return the body. Raises JSONDecodeError and HTTPException, which FastAPI lets pass."""
        try:
            return load_json(await self.body())
        except json.JSONDecodeError:
            raise
        except RepeatedKey as error:
            raise HTTPException(400, f"the body: {error}") from None
        except (ValueError, RecursionError):
            raise HTTPException(400, UNREADABLE_BODY) from None
