"""JSON whose objects must have each key once."""

from __future__ import annotations

import pytest

from polydev.json_text import RepeatedKey, load_json


def test_other_json_is_read_as_always() -> None:
    assert load_json(b'{"a": [{"b": 1}, {"b": 2}], "b": null}') == {
        "a": [{"b": 1}, {"b": 2}],
        "b": None,
    }


@pytest.mark.parametrize("text", ['{"b": 0, "a": 1, "a": 2}', '[{"x": {"a": 1, "\\u0061": 2}}]'])
def test_an_object_that_has_a_key_twice_is_refused(text: str) -> None:
    with pytest.raises(RepeatedKey, match=r"^an object has the same key twice$"):
        load_json(text)
