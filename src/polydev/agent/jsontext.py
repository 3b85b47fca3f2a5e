"""Compact JSON text, written by hand: `json` alone would cost more than the whole agent."""

from __future__ import annotations

from _json import encode_basestring_ascii


def json_text(value: object) -> str:
    """The JSON form of None, booleans, finite numbers, strings, and lists and dicts of them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join([json_text(item) for item in value]) + "]"
    if isinstance(value, dict):
        pairs = [
            encode_basestring_ascii(str(key)) + ":" + json_text(item) for key, item in value.items()
        ]
        return "{" + ",".join(pairs) + "}"
    raise TypeError(f"{type(value).__name__} has no JSON form here")
