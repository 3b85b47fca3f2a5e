"""systemd's side: what state units are in, and the service's own duties towards it."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_DGRAM, socket

from polydev.agent.command import output_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from polydev.agent.reply_types import ServiceState

PROPERTIES = "Id,ActiveState,SubState,Result,NRestarts,ExecMainStatus"
FIRST_INHERITED_SOCKET = 3
# A unit that has been restarted so often while the VM boots does not come up.
RESTARTS_THAT_TELL = 4


class Units:
    """The states of the units asked for, and the names of all failed units of the system.

    `problem` is set, and the states read "unknown", when systemctl did not answer.
    """

    def __init__(
        self,
        services: dict[str, ServiceState],
        failed: list[str],
        exit_statuses: Mapping[str, int] | None = None,
        problem: str = "",
    ) -> None:
        self.services = services
        self.failed = failed
        self.problem = problem
        self._exit_statuses = exit_statuses or {}

    def all_active(self) -> bool:
        return all(state["active"] == "active" for state in self.services.values())

    def any_given_up(self, *, is_booting: bool) -> bool:
        """Is a unit failed for good, or does it exit again and again while the VM boots?

        One that systemd is about to restart has not failed. After the boot, restarts tell
        nothing: the browser's user may close it as often as they like.
        """
        return any(
            state["active"] == "failed"
            or state["result"] == "start-limit-hit"
            or (is_booting and _exits_again_and_again(state))
            for state in self.services.values()
        )

    def words(self, unit: str) -> str:
        """For a person: "polydev-vnc.service is failed/failed, exit-code 1, 3 restarts"."""
        if self.problem:
            return self.problem
        state = self.services[unit]
        words = f"{unit} is {state['active']}/{state['sub']}"
        if state["result"] not in ("success", "unknown"):
            words += f", {state['result']} {self._exit_statuses.get(unit, 0)}"
        if state["restarts"]:
            words += f", {state['restarts']} restarts"
        return words


def unknown_units(wanted: Iterable[str], problem: str) -> Units:
    unknown: ServiceState = {
        "active": "unknown",
        "sub": "unknown",
        "result": "unknown",
        "restarts": 0,
    }
    return Units({unit: {**unknown} for unit in wanted}, [], problem=problem)


def units_of_show(text: str, wanted: Iterable[str]) -> Units:
    """Read what `systemctl show` printed: blocks of Name=value with empty lines between."""
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in text.split("\n\n")
    ]
    by_name = {block["Id"]: block for block in blocks if "Id" in block}
    units = unknown_units(wanted, "")
    missing = [unit for unit in units.services if unit not in by_name]
    for unit in units.services.keys() - missing:
        units.services[unit] = _service_state(by_name[unit])
    return Units(
        units.services,
        sorted(name for name, block in by_name.items() if block.get("ActiveState") == "failed"),
        {name: _count(block.get("ExecMainStatus")) for name, block in by_name.items()},
        problem=f"systemctl says nothing of {', '.join(missing)}" if missing else "",
    )


def ask_units(systemctl: str, wanted: Iterable[str], timeout_seconds: float) -> Units:
    """One systemctl process for both: units by name always show, the pattern adds the failed."""
    argv = [systemctl, "show", "--no-pager", "-p", PROPERTIES, "--state=failed", *wanted, "*"]
    return units_of_show(output_of(argv, timeout_seconds), wanted)


def _service_state(block: Mapping[str, str]) -> ServiceState:
    return {
        "active": block.get("ActiveState", "unknown"),
        "sub": block.get("SubState", "unknown"),
        "result": block.get("Result", "unknown"),
        "restarts": _count(block.get("NRestarts")),
    }


def _exits_again_and_again(state: ServiceState) -> bool:
    return state["active"] != "active" and state["restarts"] >= RESTARTS_THAT_TELL


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def notify(environ: Mapping[str, str], state: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3))."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    sender = socket(AF_UNIX, SOCK_DGRAM)
    try:
        sender.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
    finally:
        sender.close()


def inherited_socket(environ: Mapping[str, str], pid: int) -> int | None:
    """Descriptor of the socket that systemd listens on for us (sd_listen_fds(3)), or None."""
    if environ.get("LISTEN_PID") != str(pid) or _count(environ.get("LISTEN_FDS")) < 1:
        return None
    os.set_inheritable(FIRST_INHERITED_SOCKET, False)
    return FIRST_INHERITED_SOCKET
