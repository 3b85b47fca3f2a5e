"""./inv for the tests of one file."""

from __future__ import annotations

import pytest

from tests.inv import Inv, own_inv


@pytest.fixture(scope="module")
def inv(tmp_path_factory: pytest.TempPathFactory) -> Inv:
    return own_inv(tmp_path_factory.mktemp("inv"))
