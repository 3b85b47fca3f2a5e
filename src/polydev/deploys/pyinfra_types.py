"""pyinfra's decorators and values with types that a strict checker can follow."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, ParamSpec, cast

from pyinfra import logger
from pyinfra.api.deploy import deploy
from pyinfra.api.operation import OperationMeta
from pyinfra.api.operation import operation as pyinfra_operation
from pyinfra.context import host as context_host

P = ParamSpec("P")
Commands = Generator[Any, None, None]
# Marks what is logged for the operator, beside what pyinfra says of itself.
FOR_OPERATOR = "for_operator"


def concern(name: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """A part of a host's deploy; its operations bear its name."""
    return cast("Callable[[Callable[P, None]], Callable[P, None]]", deploy(name))


def operation(commands: Callable[..., Commands]) -> Callable[..., OperationMeta]:
    """An operation from the generator of its commands; pyinfra adds `name` and its own words."""
    return cast("Callable[..., OperationMeta]", pyinfra_operation()(commands))


def warn(text: str) -> None:
    """Tell the operator, with the plan; it keeps nothing from being done."""
    logger.warning(text, extra={FOR_OPERATOR: True})


def host_values() -> tuple[str, dict[str, Any]]:
    """Name and data of the host that is being deployed."""
    return str(context_host.name), dict(context_host.data.dict())
