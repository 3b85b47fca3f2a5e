"""pyinfra's decorators and values, with types for a strict checker."""

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
# Marks log records for the operator, among those of pyinfra itself.
FOR_OPERATOR = "for_operator"


def concern(name: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Make a function one part of a host's deploy, whose name its operations get as a prefix."""
    return cast("Callable[[Callable[P, None]], Callable[P, None]]", deploy(name))


def operation(commands: Callable[..., Commands]) -> Callable[..., OperationMeta]:
    """Make an operation from a generator of commands; pyinfra adds `name` and its arguments."""
    return cast("Callable[..., OperationMeta]", pyinfra_operation()(commands))


def warn(text: str) -> None:
    """Add a warning to the plan; it does not stop the deployment."""
    logger.warning(text, extra={FOR_OPERATOR: True})


def host_values() -> tuple[str, dict[str, Any]]:
    """Return name and data of the host that is being deployed."""
    return str(context_host.name), dict(context_host.data.dict())
