"""systemd: states of units, notifications, and the socket that it passes."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_DGRAM, socket

from polydev.agent.run_command import output_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from polydev.agent.reply_types import ServiceState

PROPERTIES = "Id,ActiveState,SubState,Result,NRestarts,ExecMainStatus"
FIRST_INHERITED_SOCKET = 3
# A unit that was restarted this often while the VM boots will not start.
RESTARTS_THAT_TELL = 4


class Units:
    """The states of certain units, and the names of all failed units of the system.

    If systemctl did not answer, `problem` is set, and the states are "unknown".
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
        """Whether a unit has finally failed, or exits again and again while the VM boots.

        A unit that systemd will restart has not failed. After the boot, restarts prove nothing: the
        user may close the browser as often as they like.
        """
        return any(
            state["active"] == "failed"
            or state["result"] == "start-limit-hit"
            or (is_booting and _exits_again_and_again(state))
            for state in self.services.values()
        )

    def words(self, unit: str) -> str:
        """In words: "polydev-vnc.service is failed/failed, exit-code 1, 3 restarts"."""
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
    """Parse `systemctl show`: blocks of Name=value, separated by empty lines."""
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
    """Ask systemctl once: named units are always shown, the pattern adds failed ones."""
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
    """Notify systemd if it asked for that (sd_notify(3))."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    sender = socket(AF_UNIX, SOCK_DGRAM)
    try:
        sender.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
    finally:
        sender.close()


def inherited_socket(environ: Mapping[str, str], pid: int) -> int | None:
    """Return the descriptor of the socket that systemd passes (sd_listen_fds(3)), or None."""
    if environ.get("LISTEN_PID") != str(pid) or _count(environ.get("LISTEN_FDS")) < 1:
        return None
    os.set_inheritable(FIRST_INHERITED_SOCKET, False)
    return FIRST_INHERITED_SOCKET
