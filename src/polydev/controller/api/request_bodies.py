"""The base of all JSON bodies of requests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, model_validator
from pydantic_core import PydanticCustomError

MOST_MEMBERS = 100


class RequestBody(BaseModel):
    """A JSON object with few members: each unknown member would add an error to the answer."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_members(cls, body: Any) -> Any:
        if isinstance(body, dict) and len(body) > MOST_MEMBERS:
            raise ValueError(f"must have at most {MOST_MEMBERS} members")
        return body


class SecretBody(RequestBody):
    """A body with a secret. Unknown keys are not quoted, since a misplaced secret may be one."""

    @model_validator(mode="before")
    @classmethod
    def _no_other_keys(cls, given: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        if isinstance(given, dict) and not set(known).issuperset(given):
            takes = " and ".join(filter(None, (", ".join(known[:-1]), known[-1])))
            raise PydanticCustomError("keys", "must have only {takes}", {"takes": takes})
        return given
