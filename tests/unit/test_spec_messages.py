"""Messages of image specs: they name what is wrong with the image."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SPECS = Path(__file__).resolve().parents[1] / "spec" / "image"


@pytest.mark.parametrize("file", sorted(SPECS.glob("test_*.py")), ids=lambda file: file.stem)
def test_each_assertion_of_a_spec_carries_a_message(file: Path) -> None:
    asserts = [
        node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Assert)
    ]
    assert asserts
    assert [node.lineno for node in asserts if node.msg is None] == []
