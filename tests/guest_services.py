"""Services of a guest as servers of this process."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]

Talk = Callable[[socket.socket], None]


class FakeServer:
    """Accepts on a loopback port (or a Unix path) and gives each connection to `talk`."""

    def __init__(self, talk: Talk, path: Path | None = None) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, EOFError):
                    talk(self.request)

        class Tcp(socketserver.ThreadingTCPServer):
            block_on_close = False
            daemon_threads = True

        class Unix(socketserver.ThreadingUnixStreamServer):
            block_on_close = False
            daemon_threads = True

        self._server = Unix(str(path), Handler) if path else Tcp(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.socket.getsockname()[1])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class CredentialsService:
    """polydev-credentials.socket: a program for each connection, with a home of the test's."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.path = folder / "credentials"
        words = [f"--providers={folder}/providers"]
        code = "import sys; from polydev.agent.credentials_program import main; main(sys.argv[1:])"
        environment = {"PYTHONPATH": str(ROOT / "src"), "HOME": str(self.home)}

        def talk(client: socket.socket) -> None:
            argv = [sys.executable, "-c", code, *words]
            subprocess.run(argv, stdin=client.fileno(), env=environment, check=True)

        self._server = FakeServer(talk, self.path)
        self.close = self._server.close
