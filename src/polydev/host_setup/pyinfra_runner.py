"""Run deploy.py through pyinfra's API: first the plan with differences, then the operations."""

from __future__ import annotations

import io
import logging
import re
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import gevent
import pyinfra_cli  # noqa: F401  (its connections are greenlets: this must come first)
from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.operations import run_ops
from pyinfra.api.state import BaseStateCallback, State, StateStage
from pyinfra.connectors import util as connectors
from pyinfra.context import ctx_config, ctx_host, ctx_state

from polydev.errors import ConfigError, DeployError
from polydev.host_setup.inventory_file import LIST, read_inventory
from polydev.host_setup.pyinfra_types import FOR_OPERATOR
from polydev.host_setup.ssh_connection import GREETING_SECONDS, OF_ALL_HOSTS
from polydev.hosttool.deployment_slice import in_slice
from polydev.processes import PLAIN_ENGLISH

Emit = Callable[..., None]
NOT_WORDS = ("Error: executed", "Traceback", "Unexpected error in Python callback", '{"error"')
OPERATION = "--> Starting operation: "
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def no_password(_prompt: str = "") -> str:
    """Replace pyinfra's question for sudo's password, which nobody can answer here.

    pyinfra would read it from standard input, where the word `go` comes from.
    """
    raise DeployError(
        "sudo on the host asks for a password",
        "give the inventory's `ssh_user` sudo rights without a password (NOPASSWD in sudoers)",
    )


setattr(connectors, "getpass", no_password)  # noqa: B010  (pyinfra declares no such seam)


class Runner:
    """One inventory and one deploy file."""

    def __init__(self, inventory: Path, deploy: Path, emit: Emit) -> None:
        self.inventory = inventory
        self.deploy = deploy
        self.emit = emit

    def apply(self, name: str | None, data: dict[str, Any], *, plan_only: bool) -> int:
        """Plan one host and, after `go` on stdin, apply the plan. Return the exit status."""
        config = Config(SUDO=True, DIFF=True, ENV=PLAIN_ENGLISH, CONNECT_TIMEOUT=GREETING_SECONDS)
        state = State()
        words = PyinfraLog(self.emit, state)
        logger = logging.getLogger("pyinfra")
        logger.handlers = [words]
        logger.setLevel(logging.INFO)
        logger.propagate = False
        with ctx_state.use(state), ctx_config.use(config):
            inventory = self._load(data)
            hosts = [host for host in inventory if name in (None, host.name)]
            if not hosts:
                raise ConfigError(f"inventory {self.inventory} has no host {name}")
            state.init(inventory, config, initial_limit=hosts)
            try:
                return self._apply(state, words, data.get("deployment_id"), plan_only=plan_only)
            except PyinfraError as error:
                # The operation's log says more than pyinfra's exception.
                raise DeployError(words.why(str(error))) from error
            finally:
                disconnect_all(state)

    def _apply(
        self, state: State, words: PyinfraLog, deployment_id: str | None, *, plan_only: bool
    ) -> int:
        with redirect_stderr(io.StringIO()):  # pyinfra's spinner
            state.set_stage(StateStage.Connect)
            connect_all(state)
            state.set_stage(StateStage.Prepare)
            for host in state.inventory.get_active_hosts():
                with ctx_host.use(host):
                    runpy.run_path(str(self.deploy))
            changes = self._plan(state, words)
            if plan_only or not changes:
                return 0
            # In a thread, so that the connection is kept alive meanwhile.
            if gevent.get_hub().threadpool.apply(sys.stdin.readline).strip() != "go":
                return 0
            if deployment_id:
                _put_in_slice(state, deployment_id)
            state.add_callback_handler(OperationEvents(self.emit))
            state.set_stage(StateStage.Execute)
            run_ops(state)
        self.emit("done", changed=_changed(state))
        return 0

    def _plan(self, state: State, words: PyinfraLog) -> int:
        operations = []
        for op_hash in state.get_op_order():
            for host, ops in state.ops.items():
                if op_hash in ops:
                    changes = bool(ops[op_hash].operation_meta.will_change)
                    operations.append(
                        {
                            "host": host.name,
                            "name": _name(state, op_hash),
                            "changes": changes,
                            "diff": words.said.pop(op_hash, []) if changes else [],
                        }
                    )
        changing = sum(bool(operation["changes"]) for operation in operations)
        self.emit("plan", changes=changing, operations=operations, warnings=words.warnings)
        return changing

    def _load(self, data: dict[str, Any]) -> Inventory:
        """Return the inventory as pyinfra wants it; `data` counts before each host's values."""
        hosts = list(read_inventory(self.inventory).items())
        return Inventory((hosts, OF_ALL_HOSTS), override_data=data, **{LIST: (hosts, {})})


def _put_in_slice(state: State, deployment_id: str) -> None:
    """Run every command in the deployment's slice, which a restore ends; facts need no slice."""
    shell = f"{in_slice(deployment_id)} sh"
    for operations in state.ops.values():
        for operation in operations.values():
            operation.global_arguments["_shell_executable"] = shell


def _name(state: State, op_hash: str) -> str:
    return ", ".join(sorted(state.get_op_meta(op_hash).names))


def _changed(state: State) -> int:
    return sum(
        operation.operation_meta.did_change()
        for ops in state.ops.values()
        for operation in ops.values()
    )


class PyinfraLog(logging.Handler):
    """Sorts pyinfra's log: differences by operation, warnings, and events for the rest."""

    def __init__(self, emit: Emit, state: State) -> None:
        super().__init__()
        self.emit_event = emit
        self.state = state
        self.said: dict[str, list[str]] = {}
        self.operation = "connection"
        self.wrong: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = COLOURS.sub("", record.getMessage()).rstrip()
        if not text:
            return
        if getattr(record, FOR_OPERATOR, False):
            self.warnings.append(text)
            return
        if self.state.current_stage == StateStage.Prepare:
            host: Any = ctx_host.get()
            op_hash = host.current_op_hash if host else None
            if op_hash:
                self.said.setdefault(op_hash, []).append(text)
            return
        if record.levelno >= logging.WARNING:
            self.wrong.append(text.partition("] ")[2] or text)
        elif text.startswith(OPERATION):
            self.operation, self.wrong = text.removeprefix(OPERATION), []
        self.emit_event("log", level=record.levelname.lower(), text=text)

    def why(self, otherwise: str = "") -> str:
        """Return the operation that failed and its messages, or `otherwise` if it has none."""
        # The host tool reports an error twice: as JSON, then as text.
        said = dict.fromkeys(line for line in self.wrong if not line.startswith(NOT_WORDS))
        said = said or dict.fromkeys([otherwise or "it failed without a message"])
        return f"{self.operation}: " + "\n".join(list(said)[-15:])


class OperationEvents(BaseStateCallback):
    """Emits an event when an operation starts and ends."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit

    def operation_host_start(self, state: State, host: Host, op_hash: str) -> None:  # type: ignore[override]
        self.emit("start", host=host.name, name=_name(state, op_hash))

    def operation_host_success(  # type: ignore[override]
        self, state: State, host: Host, op_hash: str, retry_count: int = 0
    ) -> None:
        self.emit("end", host=host.name, name=_name(state, op_hash), ok=True)

    def operation_host_error(  # type: ignore[override]
        self, state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        self.emit("end", host=host.name, name=_name(state, op_hash), ok=False)
