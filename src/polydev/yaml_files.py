"""Read YAML files; every key must be text and appear once.

PyYAML silently takes the last of two equal keys, and reads the keys `on`, `1` and `2024-01-01` as
other types than text, the number 017 as 15 and 1:20 as 80. Errors name the line and quote no value,
since it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from polydev.errors import ConfigError

TEXT_TAG = "tag:yaml.org,2002:str"
MERGE_TAG = "tag:yaml.org,2002:merge"
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# YAML 1.1 reads them in base 8 and in base 60.
NOT_DECIMAL = re.compile(r"[-+]?0[0-9_]+|.*:.*")
# With all aliases replaced by what they stand for: a few lines can stand for billions of values.
MOST_VALUES = 100_000


def load_yaml(file: Path, hint: str | None = None) -> Any:
    """Return the content of a file. Raises ConfigError; `hint` is for an unreadable file."""
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", hint, file=file) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            "is not UTF-8 text", "save the file as UTF-8", file=file, key=f"line {line}"
        ) from None
    return parse_yaml(text, file)


def parse_yaml(text: str, file: Path | None = None) -> Any:
    """Return the content of a text. Raises ConfigError with `file` and the line."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, "", file, [], {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}" if mark else ""
        words = ", ".join(part for part in (error.problem, error.context) if part)
        raise ConfigError(f"is not YAML: {words}", file=file, key=where) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(f"is not YAML: {error.reason}", file=file, key=f"line {line}") from None
    except RecursionError:
        raise ConfigError("is nested too deeply", file=file) from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, whose errors about values are YAML errors with a line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"a value that cannot be a YAML {kind}", node.start_mark
            ) from None


def _check(
    node: yaml.Node, path: str, file: Path | None, above: list[yaml.Node], known: dict[int, int]
) -> int:
    """Return how many values there are from this node on; `known` has those of checked nodes.

    Raises ConfigError for a key that is not text or appears twice, for a number that is not
    decimal, for a loop of aliases, and for more than MOST_VALUES values.
    """
    if any(node is each for each in above):
        raise ConfigError("contains itself", file=file, key=path)
    if id(node) in known:
        return known[id(node)]
    if isinstance(node, yaml.ScalarNode):
        _check_number(node, path, file)
    within = [*above, node]
    count = 1
    for below, child in _children(node, path, file):
        count += _check(child, below, file, within, known)
    if count > MOST_VALUES:
        raise ConfigError(
            f"stands for more than {MOST_VALUES} values", "use fewer aliases", file=file, key=path
        )
    known[id(node)] = count
    return count


def _children(node: yaml.Node, path: str, file: Path | None) -> Iterator[tuple[str, yaml.Node]]:
    """Yield the values in a list or mapping with their paths. Raises ConfigError for its keys."""
    if isinstance(node, yaml.SequenceNode):
        for index, each in enumerate(node.value):
            yield f"{path}[{index}]", each
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in (TEXT_TAG, MERGE_TAG):
                name = f" {key.value}" if isinstance(key, yaml.ScalarNode) else ""
                raise ConfigError(
                    f"the key{name} is not text",
                    "write it in quotes",
                    file=file,
                    key=_place(path, f"line {line}"),
                )
            below = f"{path}.{key.value}" if path else str(key.value)
            if key.value in lines:
                raise ConfigError(
                    f"this key appears twice, in line {lines[key.value]} and in line {line}",
                    "remove one of them",
                    file=file,
                    key=below,
                )
            lines[key.value] = line
            yield below, value


def _check_number(node: yaml.ScalarNode, path: str, file: Path | None) -> None:
    if node.tag in NUMBER_TAGS and NOT_DECIMAL.fullmatch(node.value):
        raise ConfigError(
            "a number with a leading zero or a colon is not decimal in YAML",
            "write it without leading zeros, or in quotes if it is text",
            file=file,
            key=_place(path, f"line {node.start_mark.line + 1}"),
        )


def _place(*parts: str) -> str:
    return ": ".join(part for part in parts if part)
