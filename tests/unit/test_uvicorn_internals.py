"""The private parts of uvicorn that the controller uses are listed, and still exist."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import uvicorn

from polydev.controller.uvicorn_internals import INTERNALS, Internals

ROOT = Path(__file__).resolve().parents[2]
SUBCLASSES = [each for each in INTERNALS if each.subclass is not None]
WHAT_TO_DO = (
    "adapt our subclass, then its table in src/polydev/controller/uvicorn_internals.py, "
    "then the upper bound of uvicorn in pyproject.toml"
)


@pytest.mark.parametrize("internals", INTERNALS, ids=lambda each: each.base.__name__)
def test_uvicorn_still_has_the_internals_we_use(internals: Internals) -> None:
    changes = list(internals.changes())
    assert not changes, "\n".join([*changes, WHAT_TO_DO])


@pytest.mark.parametrize("internals", SUBCLASSES, ids=lambda each: each.base.__name__)
def test_table_names_every_internal_our_subclass_uses(internals: Internals) -> None:
    assert internals.subclass is not None
    module, name = internals.subclass
    used = names_used(getattr(import_module(module), name))
    in_base = {each for each in used if is_of_uvicorn(internals.base, each)}
    unnamed = in_base - internals.methods.keys() - internals.attributes
    assert not unnamed, f"{name} uses {unnamed} of uvicorn: name them in the table"


def test_uvicorn_has_an_upper_version_bound() -> None:
    bound = re.search(r'"uvicorn>=0\.(\d+),<0\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert bound is not None, 'pyproject.toml needs "uvicorn>=0.N,<0.M"'
    minor = int(uvicorn.__version__.split(".")[1])
    assert int(bound[1]) <= minor < int(bound[2])
    assert int(bound[2]) == minor + 1, f"only up to uvicorn {uvicorn.__version__} is tested"


def test_changes_of_uvicorn_are_described() -> None:
    class Base:
        def kept(self, name: str) -> None:
            self.there = name

        def changed(self) -> None: ...

    methods = {"kept": "self, name", "changed": "self, data", "gone": "self"}
    internals = Internals(None, Base, methods, frozenset({"there", "away"}))
    assert [each.partition(": ")[2] for each in internals.changes()] == [
        "Base.changed has the parameters (self) instead of (self, data)",
        "Base has no method gone any more",
        "Base has no attribute away any more",
    ]


def names_used(subclass: type) -> set[str]:
    """Names that a class overrides, or uses of `self` and `super()`."""
    tree = ast.parse(inspect.getsource(subclass))
    attributes = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) in ("self", "super()", "self.cycle")
    }
    return attributes | set(vars(subclass))


def is_of_uvicorn(base: type, name: str) -> bool:
    if name.startswith("__") and name != "__init__":
        return False
    return name in vars(base) or f"self.{name} " in inspect.getsource(base)
