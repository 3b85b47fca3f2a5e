"""`python3 -m polydev.agent`: listen, notify systemd, then check the desktop.

In the guest, polydev-agent.service calls `main` without `-m`, which saves the import of `runpy`.
"""

from __future__ import annotations

import os
import sys
from _thread import start_new_thread

from polydev.agent.announce_ready import announce_when_ready
from polydev.agent.health import health_of_guest
from polydev.agent.routes import Routes
from polydev.agent.server import AgentServer, listening_socket, log
from polydev.agent.settings import settings_from_arguments
from polydev.agent.systemd import inherited_socket, notify


def main(arguments: list[str]) -> None:
    """Serve until the process is stopped."""
    settings = settings_from_arguments(arguments)
    inherited = inherited_socket(os.environ, os.getpid())
    listener = listening_socket(settings.listen_address, settings.listen_port, inherited)
    address, port = listener.getsockname()
    notify(os.environ, f"READY=1\nSTATUS=answers on {address}:{port}")
    health = health_of_guest(settings)
    start_new_thread(announce_when_ready, (health, settings, log))
    AgentServer(listener, Routes(health, settings), settings).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
