"""Numbers in paths and queries of URLs: digits only, as the API's schema says.

Pydantic alone would also read `1_0` as 10, and ` 5`, `+5` and `5.0` as 5.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError

_WHOLE = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def _whole(value: object) -> object:
    if isinstance(value, str) and not _WHOLE.fullmatch(value):
        raise PydanticKnownError("int_parsing")
    return value


def _decimal(value: object) -> object:
    if isinstance(value, str) and not _DECIMAL.fullmatch(value):
        raise PydanticKnownError("float_parsing")
    return value


WholeNumber = Annotated[int, BeforeValidator(_whole)]
DecimalNumber = Annotated[float, BeforeValidator(_decimal)]
