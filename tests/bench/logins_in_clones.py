"""Measure when the login URL of a tool is known in a fresh clone, and when the bare tool has it.

`./inv bench.login` runs it on this machine:

    python -m tests.bench.logins_in_clones IMAGE LOGINS TOOL...    seconds of each tool, as JSON

Each measurement is the first start of the tool in a VM that was just resumed and whose health was
asked for once, as in a session from the pool. The program that starts the bare tool runs before a
login too, without the tool, so that both tools start equally long after the resume: the browser has
much to do then. Logins and bare tools take turns.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polydev import http_client
from polydev.http_client import HttpSession
from polydev.image.guest_shell import GuestShell
from polydev.settings import Settings
from tests.clones import Clone, Clones, identify_concurrently, shell, template_clones

# As often as a controller asks.
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 600.0
BARE = b64encode(Path(__file__).with_name("bare_tool.py").read_bytes()).decode()
PROVIDERS = "/usr/share/polydev/providers"
PROGRAMS = "/usr/lib/polydev-agent/bin"
USER = "browser"
ENVIRONMENT = (
    f"HOME=/home/{USER} DISPLAY=:1 LANG=C.UTF-8 TERM=xterm-256color BROWSER={PROGRAMS}/xdg-open"
    f" PATH={PROGRAMS}:/usr/local/bin:/usr/bin:/bin"
)


def login_seconds(clone: Clone, tool: str) -> float:
    """From the request of a controller until the agent has the URL."""
    ask_health(clone)
    with shell(clone.machine) as console:
        login_of(console, tool)
        console.run(bare_command(None), PATIENCE_SECONDS)
    login = f"{clone.machine.config.ports.agent_url}/login/{tool}"
    with HttpSession(login, timeout_seconds=PATIENCE_SECONDS) as agent:
        began = time.monotonic()
        state = agent.post("").json()
        while state["url"] is None:
            if state["status"] not in ("starting", "waiting"):
                raise SystemExit(f"the login of {tool} failed: {state['detail']}")
            time.sleep(POLL_SECONDS)
            state = agent.get("").json()
        return time.monotonic() - began


def bare_seconds(clone: Clone, tool: str) -> float:
    """By the guest's clock, which is the host's."""
    ask_health(clone)
    with shell(clone.machine) as console:
        login = login_of(console, tool)
        asks = [{"jsonrpc": "2.0", "id": at, **each} for at, each in enumerate(login["requests"])]
        wanted = {
            "command": login["command"],
            "environment": login["environment"],
            "requests": [json.dumps(each) for each in asks],
            "mark": login["printed_url_mark"],
        }
        return float(console.run(bare_command(wanted), PATIENCE_SECONDS).text)


def ask_health(clone: Clone) -> None:
    http_client.get(f"{clone.machine.config.ports.agent_url}/health", PATIENCE_SECONDS)


def login_of(console: GuestShell, tool: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(console.run(f"cat {PROVIDERS}/{tool}.json").text)["login"]
    return found


def bare_command(wanted: dict[str, Any] | None) -> str:
    as_user = f"runuser -u {USER} -- env {ENVIRONMENT} python3 -I - "
    return f"echo {BARE} | base64 -d | {as_user} {shlex.quote(json.dumps(wanted))}"


def in_clone(clones: Clones, measured: Callable[[Clone, str], float], tool: str) -> float:
    (clone,) = identify_concurrently([clones.resume()], first=len(clones.made))
    try:
        return round(measured(clone, tool), 2)
    finally:
        clone.machine.stop()


def measure(image: Path, logins: int, tools: list[str]) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    with template_clones(image, Settings.from_environment()) as clones:
        for tool in tools:
            found[tool] = {"login": [], "bare": []}
            for kind, measured in [("login", login_seconds), ("bare", bare_seconds)] * logins:
                found[tool][kind].append(in_clone(clones, measured, tool))
                print(f"{tool}: {kind} {found[tool][kind][-1]:g} s", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
