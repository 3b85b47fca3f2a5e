"""Checks of values that pydantic lacks, and its errors in plain words; no value is quoted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address
from pathlib import Path as FilePath
from typing import Annotated, Any, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ValidationError

HIGHEST_PORT = 65535
HOST_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


def no_flag(value: Any) -> Any:
    """Reject true and false, which pydantic would read as the numbers 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must not be true or false")
    return value


def _written_as_text(value: Any) -> Any:
    """Reject numbers and bytes: ipaddress takes 10 for 0.0.0.10."""
    if isinstance(value, int | bytes | tuple | list):
        raise ValueError("must be text, in quotes")
    return value


def _path_text(value: Any) -> Any:
    """Reject texts that no file has as its path; an empty one would be the current folder."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be empty")
    if isinstance(value, str | FilePath) and "\0" in str(value):
        raise ValueError("is not a path")
    return value


Ipv4Address = Annotated[IPv4Address, BeforeValidator(_written_as_text)]
Ipv4Interface = Annotated[IPv4Interface, BeforeValidator(_written_as_text)]
Ipv4Network = Annotated[IPv4Network, BeforeValidator(_written_as_text)]
NamedPath = Annotated[FilePath, BeforeValidator(_path_text)]


def is_host(name: str) -> bool:
    """Whether the host of a URL is an IP address, or a name that DNS can have."""
    try:
        ip_address(name)
    except ValueError:
        try:
            return HOST_NAME.fullmatch(name.encode("idna").decode()) is not None
        except UnicodeError:
            return False
    return True


def is_one_url(text: str) -> bool:
    """Whether a text is one URL: printable, without blanks, with a possible host and port."""
    try:
        parts = urlsplit(text)
        has_host = is_host(parts.hostname or "") and parts.port != 0
    except ValueError:
        return False
    return has_host and text.isprintable() and " " not in text


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
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
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
    found = [
        (tuple(part for part in each["loc"] if part != "[key]"), each)
        for each in error.errors(include_input=False, include_url=False)
    ]
    paths = [path for path, _ in found]
    seen = set()
    for path, each in found:
        is_consequence = each["type"] == "default_factory_not_called" or path in seen
        if each["type"] == "too_short":  # wrong entries do not count
            is_consequence |= any(len(path) < len(p) and p[: len(path)] == path for p in paths)
        if is_consequence:
            continue
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
    if problem["type"] in ("too_short", "string_too_short") and problem["ctx"]["min_length"] == 1:
        return "must not be empty"
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
