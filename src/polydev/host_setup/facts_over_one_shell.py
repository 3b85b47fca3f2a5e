"""One root shell that stays open for all facts of a plan, and a cache of their answers.

pyinfra starts a channel, sudo and a shell for each fact, and repeats equal ones, which makes up
most of a plan's time. A plan does not change the host, so answers stay valid while it is made.
Operations that run later use pyinfra's own way.
"""

from __future__ import annotations

import secrets
from typing import Any

import gevent
from pyinfra.api.state import StateStage
from pyinfra.connectors.util import CommandOutput, OutputLine, make_unix_command
from pyinfra.context import host, state

from polydev.errors import Error

Answer = tuple[bool, CommandOutput]


class RootShell:
    """Runs commands one after the other. pyinfra repeats one that fails, and reports why."""

    def __init__(self, client: Any) -> None:
        self._input, self._output, _ = client.exec_command("sudo -H -n sh")
        self._has_ended = False

    def output_of(self, command: str) -> list[str] | None:
        """Return the lines that a command wrote; None if it failed or the shell has ended."""
        if self._has_ended:
            return None
        mark = f"{secrets.token_hex(16)} "
        asked = f"{command} </dev/null 2>/dev/null; s=$?; echo; echo {mark}$s\n"
        try:
            self._input.write(asked)
            self._input.flush()
            lines: list[str] = []
            for line in self._output:
                if line.startswith(mark):
                    return _without_end(lines) if line == f"{mark}0\n" else None
                lines.append(line)
        except OSError:
            pass
        self._has_ended = True
        return None


def _without_end(lines: list[str]) -> list[str]:
    """Return the lines as pyinfra has them, without the line end that precedes the mark."""
    text = "".join(lines).removesuffix("\n")
    return text.removesuffix("\n").split("\n") if text else []


def read_facts_through_one_shell() -> None:
    """Read the facts of this plan through a RootShell, if pyinfra reaches the host by SSH."""
    connector: Any = host.connector
    client = getattr(connector, "client", None)
    if client is None:
        return
    shell, ordinary = RootShell(client), connector.run_shell_command
    known: dict[str, Answer] = {}

    def run_shell_command(command: Any, *words: Any, **arguments: Any) -> Answer:
        is_plain = arguments.get("_sudo") and not arguments.get("_stdin")
        if state.current_stage != StateStage.Prepare or not is_plain:
            answer: Answer = ordinary(command, *words, **arguments)
            return answer
        environment, executable = arguments.get("_env"), arguments.get("_shell_executable", "sh")
        made = make_unix_command(command, _env=environment, _shell_executable=executable)
        text = made.get_raw_value()
        if text not in known:
            lines = shell.output_of(text)
            if lines is None:
                known[text] = ordinary(command, *words, **arguments)
            else:
                known[text] = True, CommandOutput([OutputLine("stdout", line) for line in lines])
        return known[text]

    connector.run_shell_command = run_shell_command


class BackgroundTask:
    """Work on this machine beside questions to the host; `result` waits, and raises its error."""

    def __init__(self, work: Any) -> None:
        self._work = work
        self._greenlet = gevent.spawn(self._attempt)

    def _attempt(self) -> Error | None:
        try:
            self._work()
        except Error as error:
            return error
        return None

    def result(self) -> None:
        error = self._greenlet.get()
        if error is not None:
            raise error
