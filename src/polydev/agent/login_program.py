"""Run one tool's login, as the desktop's user: a child process of `login_server`.

    the tool's output, the pages that it opens -> LoginFlow -> state file, a tab in Chromium
    codes from the agent, the user's input in the terminal window -> the tool's terminal

The tool's browser is a script of the image, which only writes the address of the page into a FIFO.
Codes come through another FIFO.
"""

from __future__ import annotations

import os

from polydev.agent.browser import show
from polydev.agent.login_flow import LoginFlow
from polydev.agent.login_state import keep_state
from polydev.agent.login_terminal import Window
from polydev.agent.providers import GuestProvider
from polydev.agent.tool_environment import tool_environment
from polydev.agent.tool_process import CHUNK_BYTES, CODE_FIFO, LoginProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from polydev.agent.reply_types import LoginStatus
    from polydev.agent.settings import AgentSettings

BROWSER_FIFO = "browser"
ENTER = b"\r"
SHOW_TIMEOUT_SECONDS = 5.0
# The agent, which writes the code, has the rights of others on this file.
FIFOS = {BROWSER_FIFO: 0o600, CODE_FIFO: 0o622}


def run_login(
    provider: GuestProvider,
    folder: str,
    settings: AgentSettings,
    after_start: Callable[[], object] = lambda: None,
) -> None:
    """Run the login of a provider to its end; `folder` gets its state and its FIFOs.

    after_start     called when the state is another one than "starting", which can be repeatedly
    """

    def keep(status: LoginStatus, url: str | None, detail: str, device_code: str | None) -> None:
        keep_state(folder, status, url, detail, device_code)
        if status != "starting":
            after_start()

    home = os.environ["HOME"]
    fifos = [_opened_fifo(f"{folder}/{name}", mode) for name, mode in FIFOS.items()]
    environment = tool_environment(provider.environment, settings)
    environment["POLYDEV_LOGIN_FIFO"] = f"{folder}/{BROWSER_FIFO}"
    process = LoginProcess(provider, environment)
    login = LoginFlow(
        provider,
        keep=keep,
        show=lambda page: show(page, home, SHOW_TIMEOUT_SECONDS),
        page_seconds=settings.login_page_seconds,
        quiet_seconds=settings.login_quiet_seconds,
    )
    login.begin()
    _follow(provider, process, login, fifos, environment)
    login.end(_ended(process, login), lambda: _confirmed(provider, settings))


def _follow(
    provider: GuestProvider,
    process: LoginProcess,
    login: LoginFlow,
    fifos: list[int],
    environment: Mapping[str, str],
) -> None:
    """Follow the tool until it ends, answers, or has opened no page in time."""
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
