"""Messages about values that pydantic rejects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from polydev.validation import problems_of


class Model(BaseModel):
    port: int


def problem(*loc: str, kind: str = "int_type", text: str = "Input should be a number") -> Any:
    return {"loc": loc, "type": kind, "msg": text}


def test_key_with_several_errors_is_reported_once() -> None:
    found = [
        problem("port", kind="x"),
        problem("port", kind="y", text="Input should be text"),
        problem("made", kind="default_factory_not_called"),
        problem("names", "[key]", kind="x", text="Input should be short"),
        problem("names", kind="x", text="Input should be long"),
    ]
    error: Any = SimpleNamespace(errors=lambda **_: found)
    assert list(problems_of(error, Model)) == [
        (("port",), "must be a number"),
        (("names",), "must be short"),
    ]
