"""Start the deploy process and read its events: the plan, then each operation."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from polydev.deployment.connection import Unreachable
from polydev.errors import ConfigError, DeployError, Error
from polydev.host_layout import CONTROLLER_PORT
from polydev.processes import LineProcess
from polydev.ssh import SshTarget

log = logging.getLogger(__name__)

Event = dict[str, Any]
Say = Callable[[str, float | None], None]


@dataclass(frozen=True)
class DescribedHost:
    """One host of an inventory: its connection and what a backup of it holds.

    `controller` is the URL at which the host itself reaches its controller.
    """

    name: str
    target: SshTarget
    scope: Mapping[str, Any]
    deadman_seconds: int
    controller: str = f"http://127.0.0.1:{CONTROLLER_PORT}"


@dataclass(frozen=True)
class Operation:
    """One planned operation; `diff` has its differences as lines."""

    name: str
    changes: bool
    diff: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The operations of a deployment, and warnings for the operator."""

    operations: tuple[Operation, ...]
    warnings: tuple[str, ...] = ()

    @property
    def changing(self) -> list[Operation]:
        return [operation for operation in self.operations if operation.changes]


@dataclass(frozen=True)
class Project:
    """A checkout to deploy from, and one of its inventories."""

    root: Path
    inventory: Path

    def argv(self, verb: str, *words: str) -> list[str]:
        inventory = ["--inventory", str(self.inventory), "--deploy", str(self.root / "deploy.py")]
        return [sys.executable, "-m", "polydev.host_setup", verb, *inventory, *words]


def describe(project: Project) -> list[DescribedHost]:
    """Return the hosts of the inventory. Raises ConfigError."""
    with _running(project.argv("describe"), project.root) as process:
        event = _await(process, "hosts")
    hosts = [
        DescribedHost(
            name=each["name"],
            target=SshTarget.from_data(each["name"], each["connection"], project.root),
            scope=each["scope"],
            deadman_seconds=each["deadmanSeconds"],
            controller=each["controller"],
        )
        for each in event["hosts"]
    ]
    if not hosts:
        raise ConfigError(
            f"inventory {project.inventory} has no hosts",
            "./inv lab.up starts a lab for inventory/lab.py; others name their hosts in the file",
        )
    return hosts


@dataclass
class PlannedDeployment:
    """A planned deployment of one host, ready to run."""

    process: LineProcess
    plan: Plan
    log_file: IO[str]
    done: list[str] = field(default_factory=list)

    def go(self, say: Say) -> int:
        """Apply the plan; return how many operations changed something. Raises DeployError.

        The process has ended when this returns or raises, so that nothing changes the host any
        more while its backup is restored.
        """
        try:
            return self._go(say)
        finally:
            self.process.end_group()

    def _go(self, say: Say) -> int:
        self.process.send("go")
        for event in _events(self.process):
            self.log_file.write(json.dumps(event) + "\n")
            self.log_file.flush()
            if event["event"] == "start":
                say(event["name"], len(self.done) / max(1, len(self.plan.operations)))
            elif event["event"] == "end":
                self.done.append(event["name"])
            elif event["event"] == "done":
                return int(event["changed"])
            elif event["event"] == "error":
                raise _error(event)
        raise _ended(self.process)


@contextmanager
def planned(
    project: Project, host: str, data: Mapping[str, Any], log_file: IO[str], *, plan_only: bool
) -> Iterator[PlannedDeployment]:
    """Plan one host; the process ends with this context. Raises DeployError, ConfigError."""
    words = ["--host", host, "--data", json.dumps(dict(data))]
    argv = project.argv("apply", *words, *(["--plan"] if plan_only else []))
    with _running(argv, project.root) as process:
        event = _await(process, "plan")
        log_file.write(json.dumps(event) + "\n")
        operations = tuple(
            Operation(each["name"], each["changes"], tuple(each["diff"]))
            for each in event["operations"]
        )
        yield PlannedDeployment(
            process, Plan(operations, tuple(event.get("warnings", ()))), log_file
        )


@contextmanager
def _running(argv: list[str], root: Path) -> Iterator[LineProcess]:
    process = LineProcess(argv, cwd=root)
    try:
        yield process
    finally:
        process.end()


def _await(process: LineProcess, name: str) -> Event:
    for event in _events(process):
        if event["event"] == name:
            return event
        if event["event"] == "error":
            raise _error(event)
    raise _ended(process)


def _ended(process: LineProcess) -> DeployError:
    """Return the error for a process that ended early, with the last lines that it wrote."""
    process.end_group()
    said = process.last_words().splitlines()[-5:]
    return DeployError("\n".join(["the deploy process ended without an answer", *said]))


def _events(process: LineProcess) -> Iterator[Event]:
    for line in process.lines():
        try:
            event = json.loads(line)
        except ValueError:
            log.warning("pyinfra: %s", line.decode(errors="replace").rstrip())
            continue
        yield event


def _error(event: Event) -> Error:
    message, hint = str(event["message"]), event.get("hint")
    if event.get("error") == "config":
        return ConfigError(message, hint)
    if event.get("error") == "unreachable":
        return Unreachable(message, hint)
    return DeployError(message, hint)
