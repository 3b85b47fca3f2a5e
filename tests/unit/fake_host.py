"""A host of pyinfra's fake connector: it gives the answers of a test, and changes nothing."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyinfra.api.command import FileUploadCommand, FunctionCommand
from pyinfra.api.config import Config
from pyinfra.api.inventory import Inventory
from pyinfra.api.operation import OperationMeta
from pyinfra.api.state import State
from pyinfra.context import ctx_host, ctx_state

FAKE = "@fake/browsers"
HERE = "(done on the operator's machine)"
# Half of pyinfra has no types.
NewInventory: Any = Inventory
NewConfig: Any = Config
CONTEXTS: tuple[Any, Any] = (ctx_state, ctx_host)
Answers = Mapping[str, object]


class FakeHost:
    """`planned` has every operation called so far, with the commands that it would run."""

    def __init__(self, answers: Answers) -> None:
        data = {"fake_responses": dict(answers), "fake_delay": 0, "fake_delay_jitter": 0}
        inventory = NewInventory(([(FAKE, data)], {}))
        self.state: Any = State(inventory, NewConfig(SUDO=True, DIFF=True))
        self.host = inventory.get_host(FAKE)

    @property
    def planned(self) -> dict[str, list[str]]:
        operations = self.state.ops[self.host]
        return {
            ", ".join(self.state.get_op_meta(key).names): [
                spelled(command) for command in operations[key].command_generator()
            ]
            for key in self.state.get_op_order()
        }

    @property
    def uploads(self) -> dict[str, str]:
        """Every file that would be sent, as text."""
        operations = self.state.ops[self.host].values()
        commands = [command for each in operations for command in each.command_generator()]
        return {
            placed_path(command): base64.b64decode(placed_input(command)).decode(errors="replace")
            for command in commands
            if placed_input(command)
        }

    def commands(self, operation: Callable[..., OperationMeta], **values: Any) -> list[str]:
        """Return the commands that one operation would run; none if the host is as declared."""
        operation(name="it", **values)
        return self.planned["it"]


def placed_input(command: Any) -> str:
    """Return the input of a command that uploads a file; empty for any other command."""
    return str(command.connector_arguments.get("_stdin", ""))


def placed_path(command: object) -> str:
    return shlex.split(str(command))[-1]


def spelled(command: object) -> str:
    if isinstance(command, FunctionCommand):
        return HERE
    assert not isinstance(command, FileUploadCommand), "it would pass through /tmp"
    return f"place {placed_path(command)}" if placed_input(command) else str(command)


@contextmanager
def fake_host(answers: Answers) -> Iterator[FakeHost]:
    """Make operations and facts use a fake host within this block."""
    made = FakeHost(answers)
    before = [context.get() for context in CONTEXTS]
    for context, current in zip(CONTEXTS, (made.state, made.host), strict=True):
        context.set(current)
    try:
        yield made
    finally:
        for context, former in zip(CONTEXTS, before, strict=True):
            context.set(former)
