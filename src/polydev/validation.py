"""Pydantic's errors in plain words, for the author of a file; no value is quoted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

NO_SUCH_KEY = "extra_forbidden"
_ADDRESS = {
    "ip_v4_address": "must be an IPv4 address, as in 192.0.2.1",
    "ip_v6_address": "must be an IPv6 address, as in 2001:db8::1",
    "ip_any_address": "must be an IP address, as in 192.0.2.1",
    "ip_v4_interface": "must be an IPv4 address with its network, as in 192.0.2.1/24",
    "ip_v6_interface": "must be an IPv6 address with its network, as in 2001:db8::1/64",
    "ip_v4_network": "must be an IPv4 network without bits of a host, as in 192.0.2.0/24",
    "ip_v6_network": "must be an IPv6 network without bits of a host, as in 2001:db8::/64",
}
_WHOLE, _NUMBER = "must be a whole number", "must be a number"
_UUID = "must be a UUID, as in 5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"
_FLAG, _LIST, _KEYS = "must be true or false", "must be a list", "must be a mapping of keys"
# By the type of pydantic's error; its context fills the braces.
_WORDS = {
    NO_SUCH_KEY: "there is no such key",
    "missing": "is missing",
    "invalid_key": "its keys must be text",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": "is too large a number",
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "must be a finite number",
    "bool_type": _FLAG,
    "bool_parsing": _FLAG,
    "string_type": "must be text",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "list_type": _LIST,
    "tuple_type": _LIST,
    "too_short": "must have at least {min_length}",
    "too_long": "must have at most {max_length}",
    "dict_type": _KEYS,
    "model_type": _KEYS,
    "model_attributes_type": _KEYS,
    "path_type": "must be a path",
    "uuid_type": _UUID,
    "uuid_parsing": _UUID,
    **_ADDRESS,
}


Path = tuple[int | str, ...]


def problems_of(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Path, str]]:
    """Yield the path and the problem of each wrong key; an unknown key gets a suggestion.

    A key with several problems comes once.
    """
    seen = set()
    for each in error.errors(include_input=False, include_url=False):
        path = tuple(part for part in each["loc"] if part != "[key]")
        if each["type"] == "default_factory_not_called" or path in seen:
            continue  # a consequence of another error
        seen.add(path)
        yield path, _words(each) + _suggestion(each["type"], path, model)


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def key_path(path: Path) -> str:
    """Return the path of a key in one of our files, such as `layers[2].npm.to`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _words(problem: Any) -> str:
    words = _WORDS.get(problem["type"])
    if words is not None:
        return words.format(**problem.get("ctx", {}))
    said = str(problem["msg"]).removeprefix("Value error, ")
    return said.replace("Input should be", "must be")


def near(name: str, known: Sequence[str]) -> str:
    """Return a question with the most similar known name; "" if none is similar."""
    normal = name.strip().lower().replace("-", "_")
    names = {each.replace("-", "_"): each for each in known}
    found = get_close_matches(normal, list(names), n=1, cutoff=0.7)
    return f"; did you mean {names[found[0]]}?" if found else ""


def _suggestion(kind: str, path: Sequence[int | str], model: type[BaseModel]) -> str:
    if kind != NO_SUCH_KEY:
        return ""
    name = str(path[-1])
    siblings = list(_model_at(path[:-1], model).model_fields)
    if found := near(name, siblings):
        return found
    elsewhere = [each for each in _paths(model) if each.rpartition(".")[2] == name]
    return f"; did you mean {elsewhere[0]}?" if elsewhere else ""


def _model_at(path: Sequence[int | str], model: type[BaseModel]) -> type[BaseModel]:
    for part in path:
        field = model.model_fields.get(str(part))
        model = (_model_in(field.annotation) if field else None) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each))), None)


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if inner := _model_in(field.annotation):
            yield from _paths(inner, f"{prefix}{name}.")
