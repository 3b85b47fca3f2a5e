"""The program of polydev-login@PROVIDER.service: runs one tool's login as the desktop's user.

    the tool's output, the pages that it opens -> LoginFlow -> state file, a tab in Chromium
    codes from the agent, the user's input in the terminal window -> the tool's terminal

The tool's browser is a script of the image, which only writes the address of the page into a FIFO.
Codes come through another FIFO.

The tool is started first: this program imports most of what it needs while the tool loads.
"""

from __future__ import annotations

import os

from polydev.agent.providers import GuestProvider, provider_of, tool_environment
from polydev.agent.settings import AgentSettings, settings_from_arguments
from polydev.agent.tool_process import CHUNK_BYTES, CODE_FIFO, LoginProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from polydev.agent.login_flow import LoginFlow
    from polydev.agent.reply_types import LoginStatus

BROWSER_FIFO = "browser"
ENTER = b"\r"
SHOW_TIMEOUT_SECONDS = 5.0
# The agent, which writes the code, has the rights of others on this file.
FIFOS = {BROWSER_FIFO: 0o600, CODE_FIFO: 0o622}


def main(arguments: list[str]) -> None:
    """Run the login of a provider. Its name is the first argument; settings may follow."""
    settings = settings_from_arguments(arguments[1:])
    folder, home = os.environ["RUNTIME_DIRECTORY"], os.environ["HOME"]
    provider = provider_of(settings.providers, arguments[0])
    fifos = [_opened_fifo(f"{folder}/{name}", mode) for name, mode in FIFOS.items()]
    environment = tool_environment(provider.environment, settings)
    environment["POLYDEV_LOGIN_FIFO"] = f"{folder}/{BROWSER_FIFO}"
    process = LoginProcess(provider, environment)
    from polydev.agent.browser import show
    from polydev.agent.login_flow import LoginFlow
    from polydev.agent.systemd import notify

    login = LoginFlow(
        provider,
        keep=lambda *state: keep_state(folder, *state),
        show=lambda page: show(page, home, SHOW_TIMEOUT_SECONDS),
        page_seconds=settings.login_page_seconds,
        quiet_seconds=settings.login_quiet_seconds,
    )
    login.begin()
    notify(os.environ, "READY=1")
    _follow(provider, process, login, fifos, environment)
    login.end(_ended(process, login), lambda: _confirmed(provider, settings))


def keep_status(arguments: list[str]) -> None:
    """The program of polydev-login-status@PROVIDER.service: check whether a tool is logged in."""
    settings = settings_from_arguments(arguments[1:])
    provider = provider_of(settings.providers, arguments[0])
    status, detail = _confirmed(provider, settings)
    keep_state(os.environ["RUNTIME_DIRECTORY"], status, None, detail)


def note_end(environ: Mapping[str, str]) -> None:
    """After the unit's end (ExecStopPost=), mark a login that was still running as failed."""
    from polydev.agent.login_state import STATE_FILE, reply_of_state

    folder = environ["RUNTIME_DIRECTORY"]
    try:
        with open(f"{folder}/{STATE_FILE}", "rb") as file:
            reply = reply_of_state("", file.read())
    except FileNotFoundError:
        reply = reply_of_state("", None)
    if reply["status"] in ("none", "starting", "waiting"):
        words = [environ.get(name, "") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS")]
        keep_state(folder, "failed", reply["url"], f"the login was stopped: {' '.join(words)}")


def keep_state(
    folder: str, status: LoginStatus, url: str | None, detail: str, device_code: str | None = None
) -> None:
    """Write the state in one step, so that readers see a complete one."""
    from polydev.agent.login_state import STATE_FILE, state_text

    new = f"{folder}/{STATE_FILE}.new"
    with open(new, "wb") as file:
        file.write(state_text(status, url, detail, device_code).encode())
    os.chmod(new, 0o644)
    os.rename(new, f"{folder}/{STATE_FILE}")


def _follow(
    provider: GuestProvider,
    process: LoginProcess,
    login: LoginFlow,
    fifos: list[int],
    environment: Mapping[str, str],
) -> None:
    """Follow the tool until it ends, answers, or has opened no page in time."""
    from polydev.agent.login_terminal import Window

    pages, codes = fifos
    window = Window(provider, environment)
    has_ended = False
    while not (has_ended or login.is_over()):
        readable = process.wait((*fifos, *window.descriptors), login.pause_seconds())
        if process.terminal in readable and (output := process.read()):
            login.take_output(output)
            window.show(output)
        if pages in readable:
            login.take_opened_pages(os.read(pages, CHUNK_BYTES))
            window.show(b"")
        if codes in readable:
            code, _, _ = os.read(codes, CHUNK_BYTES).partition(b"\n")
            login.take_typed(code + ENTER)
            process.type(code)
            process.type(ENTER)
        if (typed := window.typed()) is None:
            login.close()
        elif typed:
            login.take_typed(typed)
            process.type(typed)
        login.retry_pages()
        has_ended = process.ended in readable


def _ended(process: LoginProcess, login: LoginFlow) -> int:
    """End the tool, process the rest of its output, and return its exit code."""
    exit_code = process.end()
    while data := process.read():
        login.take_output(data)
    return exit_code


def _confirmed(provider: GuestProvider, settings: AgentSettings) -> tuple[LoginStatus, str]:
    from polydev.agent.login_confirm import confirmed  # late, since it imports shutil

    return confirmed(provider, settings)


def _opened_fifo(path: str, mode: int) -> int:
    """Open a FIFO so that it stays open while its writers come and go."""
    if os.path.lexists(path):
        os.unlink(path)
    os.mkfifo(path, 0o600)
    os.chmod(path, mode)
    return os.open(path, os.O_RDWR)
