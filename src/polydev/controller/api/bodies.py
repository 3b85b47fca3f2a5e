"""The base of all JSON bodies of requests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, model_validator

MOST_MEMBERS = 100


class RequestBody(BaseModel):
    """A JSON object with few members. Each unknown one would be an error of its own."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_members(cls, body: Any) -> Any:
        if isinstance(body, dict) and len(body) > MOST_MEMBERS:
            raise ValueError(f"a body may have {MOST_MEMBERS} members at most")
        return body
