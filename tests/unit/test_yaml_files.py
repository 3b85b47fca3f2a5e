"""YAML files: which are refused, and the line that the error names."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.errors import ConfigError
from polydev.image.recipe import load_recipe
from polydev.yaml_files import load_yaml, parse_yaml


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, Path("x.yaml"))
    assert caught.value.message.startswith("x.yaml: ")
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("a: 1\nb: [x, {c: y}]\n", {"a": 1, "b": ["x", {"c": "y"}]}),
        ("- a: 1\n- a: 2\n", [{"a": 1}, {"a": 2}]),
        ("'1': x\n'on': y\n", {"1": "x", "on": "y"}),
        ("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\n", {"x": {"a": 1, "b": 2}, "y": {"a": 3, "b": 2}}),
        ("x: &x {a: 1}\ny: [*x, *x]\n", {"x": {"a": 1}, "y": [{"a": 1}, {"a": 1}]}),
        ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ],
)
def test_valid_yaml_is_parsed(text: str, value: object) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("port: 1\nhost: x\nport: 2\n", "port", (1, 3)),
        ("layers: []\nname: x\n'layers': []\n", "layers", (1, 3)),
        ("layers:\n- name: a\n  run: x\n- run: x\n  name: b\n  run: y\n", "layers[1].run", (4, 6)),
        ("a: {b: 1, c: 2, b: 3}\n", "a.b", (1, 1)),
        ("a:\n  b:\n    c: 1\n    ? c\n    : 2\n", "a.b.c", (3, 4)),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x\n", "y.<<", (3, 4)),
        ("a: &a {b: 1,\n  b: 2}\nc: *a\n", "a.b", (1, 2)),
    ],
)
def test_duplicate_key_is_refused_with_both_lines(
    text: str, key: str, lines: tuple[int, int]
) -> None:
    error = refusal(text)
    assert error.key == key
    assert f"in line {lines[0]} and in line {lines[1]}" in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: x\n1: y\n", "line 2: the key 1 is not text"),
        ("on: y\n", "line 1: the key on is not text"),
        ("a:\n  null: y\n", "a: line 2: the key null is not text"),
        ("2024-01-01: y\n", "line 1: the key 2024-01-01 is not text"),
        ("? [a]\n: y\n", "line 1: the key is not text"),
        ("a: 2024-99-99\n", "line 1: is not YAML: a value that cannot be a YAML timestamp"),
        ("a: !!int soon\n", "line 1: is not YAML: a value that cannot be a YAML int"),
        ("a: !!bool soon\n", "line 1: is not YAML: a value that cannot be a YAML bool"),
        ("a: !!python/name:os.system\n", "line 1: is not YAML: could not determine"),
        ("a: *b\n", "line 1: is not YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "line 2: is not YAML: but found another document"),
        ("a: 1\nb: \x07\n", "line 2: is not YAML: special characters are not allowed"),
        ("a: &a [*a]\n", "a[0]: contains itself"),
        ("[" * 5000, "is nested too deeply"),
    ],
)
def test_invalid_yaml_is_refused_with_its_line(text: str, said: str) -> None:
    assert refusal(text).message.startswith(f"x.yaml: {said}")


def test_errors_do_not_quote_values() -> None:
    assert "hunter2" not in refusal("password: hunter2 [\n  - x: [hunter2\n").message


def test_file_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"a: 1\nb: gr\xf6\xdfer\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: line 2: is not UTF-8 text"):
        load_yaml(file)


def test_recipes_are_read_with_the_same_checks(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: small\nlayers:\n- name: base\n  run: a\n  run: b\n")
    with pytest.raises(ConfigError, match=r"layers\[0\]\.run: this key appears twice, in line 4"):
        load_recipe(recipe)


@pytest.mark.parametrize("number", ["017", "-017", "0_17", "00", "1:20", "12:30:45", "1:20.5"])
def test_a_number_that_is_not_decimal_is_refused(number: str) -> None:
    error = refusal(f"a:\n- port: {number}\n")
    assert error.key == "a[0].port: line 2"
    assert "is not decimal" in error.message
    assert number not in error.message
    assert parse_yaml(f"port: '{number}'\n") == {"port": number}


def test_decimal_and_hexadecimal_numbers_are_read() -> None:
    assert parse_yaml("[0, 10, 0x1f, 0.5, -1, 1_000]") == [0, 10, 31, 0.5, -1, 1000]


def test_few_lines_that_stand_for_billions_of_values_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 12):
        aliases = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    error = refusal("\n".join(lines))
    assert error.key == "a5"
    assert "stands for more than 100000 values" in error.message
