"""Services of a guest as servers of this process."""

from __future__ import annotations

import contextlib
import os
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


class LoginService:
    """polydev-login.socket and its service, in a guest that is a folder.

    Its logins are in `logins`, control groups, which are mere folders here, in `groups`; it logs
    into `log`.
    """

    CODE = """
import os, signal, sys
# As systemd starts programs, also where these tests run under nohup: a closed terminal ends a tool.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
from polydev.agent.login_server import main
main(sys.argv[2:])
"""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.path = folder / "login-server"
        self.log = folder / "log"
        self._environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "src"), **environment}
        self._environment.setdefault("HOME", str(folder / "home"))
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.path))
        self._socket.listen()
        self.start()

    def start(self) -> None:
        words = {
            "logins": self.folder / "logins",
            "login-groups": self.folder / "groups",
            "login-programs": self.folder / "bin",
            "providers": self.folder / "providers",
        }
        passed = str(self._socket.fileno())
        settings = [f"--{name}={value}" for name, value in words.items()]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.CODE, passed, *settings],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._socket.fileno()],
                start_new_session=True,
            )

    @property
    def starts(self) -> list[str]:
        """The providers whose logins were started, in turn."""
        mark = "starts the login of "
        lines = self.log.read_text().splitlines()
        return [line.removeprefix(mark) for line in lines if line.startswith(mark)]

    def logins(self) -> list[int]:
        """The processes of the logins that run."""
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()
