"""Stand-ins for the providers' servers, and a tool of the image that logs in against them.

    unshare --net --mount --pid --fork python provider_stand_ins.py ROOTFS AT FOLDER PROVIDER

ROOTFS is mounted at AT, FOLDER as its /tmp; a tool's home is FOLDER/home. Nothing leaves the
network namespace: the providers' names are in the guest's /etc/hosts, and FOLDER has a certificate
for them by an authority that the guest is made to trust. The browser is a script that consents at
once. On stdout is JSON: how the login ended, what it said, and how its status command ended.
"""

from __future__ import annotations

import base64
import http.server
import json
import shlex
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

NAMES = (
    *("claude.com", "claude.ai", "platform.claude.com", "api.anthropic.com"),
    *("auth.openai.com", "chatgpt.com"),
    *("accounts.google.com", "oauth2.googleapis.com", "www.googleapis.com"),
    *("cloudcode-pa.googleapis.com",),
    *("github.com", "api.github.com", "api.githubcopilot.com"),
)
FAR_AWAY_SECONDS = 4102444800  # 2100-01-01
PATIENCE_SECONDS = 300
BROWSER = """#!/usr/bin/python3
import sys
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

asked = parse_qs(urlsplit(sys.argv[1]).query)
place, state = asked["redirect_uri"][0], asked["state"][0]
try:
    urlopen(f"{place}?code=synthetic&state={state}").read()
except OSError:
    pass  # the page that the tool leads to then
"""
MOUNTS = """
ip link set lo up
mount -o ro,loop,noload "$1" "$2"
mount -t proc proc "$2/proc"
mount --rbind /dev "$2/dev"
mount --bind "$3" "$2/tmp"
mount --bind "$3/hosts" "$2/etc/hosts"
mount --bind "$3/authorities.pem" "$2/etc/ssl/certs/ca-certificates.crt"
"""


def web_token(**claims: Any) -> str:
    """A JSON web token that nobody has signed."""
    parts = [{"alg": "none", "typ": "JWT"}, {"exp": FAR_AWAY_SECONDS, **claims}, "signature"]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts]
    return b".".join(part.rstrip(b"=") for part in encoded).decode()


OF_ADA = web_token(
    email="ada@example.org",
    **{"https://api.openai.com/auth": {"chatgpt_plan_type": "plus", "chatgpt_account_id": "a"}},
)
UUID = "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"
# By host and path: the least that the tools need to have logged in.
ANSWERS: dict[str, Any] = {
    "platform.claude.com/v1/oauth/token": {
        "token_type": "Bearer",
        "access_token": "sk-ant-oat01-synthetic",
        "refresh_token": "sk-ant-ort01-synthetic",
        "expires_in": 28800,
        "scope": "user:inference user:profile",
        "account": {"uuid": UUID, "email_address": "ada@example.org"},
        "organization": {"uuid": UUID, "name": "Ada's"},
    },
    "api.anthropic.com/api/oauth/profile": {
        "account": {"uuid": UUID, "email": "ada@example.org", "has_claude_max": True},
        "organization": {"uuid": UUID, "name": "Ada's", "organization_type": "claude_max"},
    },
    "auth.openai.com/oauth/token": {
        "id_token": OF_ADA,
        "access_token": OF_ADA,
        "refresh_token": "rt_synthetic",
    },
    "oauth2.googleapis.com/token": {
        "token_type": "Bearer",
        "access_token": "ya29.synthetic",
        "refresh_token": "1//synthetic",
        "expires_in": 3599,
        "scope": "https://www.googleapis.com/auth/cloud-platform",
    },
    "www.googleapis.com/oauth2/v2/userinfo": {"id": "1", "email": "ada@example.org"},
    "cloudcode-pa.googleapis.com/v1internal:loadCodeAssist": {
        "currentTier": {"id": "standard-tier", "name": "Standard"},
        "cloudaicompanionProject": "project",
    },
    "github.com/login/oauth/access_token": {
        "token_type": "bearer",
        "access_token": "gho_synthetic",
        "scope": "read:user",
    },
    "api.github.com/copilot_internal/user": {
        "login": "ada",
        "copilot_plan": "business",
        "chat_enabled": True,
        "endpoints": {"api": "https://api.githubcopilot.com"},
    },
}


class StandIn(http.server.BaseHTTPRequestHandler):
    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = f"{self.headers['Host']}{self.path.partition('?')[0]}"
        body = json.dumps(ANSWERS.get(name, {})).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 - the names that its base calls

    def log_message(self, *_: Any) -> None:
        """Say nothing: stdout is the answer."""


def serve(folder: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 443), StandIn)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def lay_out(folder: Path) -> None:
    (folder / "home").mkdir()
    (folder / "hosts").write_text(f"127.0.0.1 localhost {' '.join(NAMES)}\n")
    (folder / "bin").mkdir()
    (folder / "bin/xdg-open").write_text(BROWSER)
    (folder / "bin/xdg-open").chmod(0o755)


def environment(part: dict[str, Any]) -> dict[str, str]:
    return {
        "HOME": "/tmp/home",
        "PATH": "/tmp/bin:/usr/local/bin:/usr/bin:/bin",
        "TERM": "xterm",
        "DISPLAY": ":1",
        "BROWSER": "/tmp/bin/xdg-open",
        "COPILOT_PKG_CACHE_HOME": "/tmp/copilot",
        "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
        "NODE_EXTRA_CA_CERTS": "/etc/ssl/certs/ca-certificates.crt",
        **part["environment"],
    }


def login_by_requests(at: Path, part: dict[str, Any]) -> tuple[int, str]:
    """Log in with a tool that takes requests; return its status and output."""
    argv = ["/usr/sbin/chroot", str(at), *part["command"]]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, env=environment(part), **pipes) as tool:
        assert tool.stdin is not None
        assert tool.stdout is not None
        for number, each in enumerate(part["requests"]):
            tool.stdin.write(json.dumps({"jsonrpc": "2.0", "id": number, **each}) + "\n")
        tool.stdin.flush()
        for line in tool.stdout:
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("id") == len(part["requests"]) - 1:
                tool.kill()
                return (0 if "result" in said else 1), line
    return 1, "it ended without an answer"


def command_result(at: Path, part: dict[str, Any]) -> tuple[int, str]:
    """Run a command on its own terminal; return its status and output."""
    command = shlex.join(part["command"])
    argv = ["/usr/sbin/chroot", str(at), "script", "-qec", command, "/dev/null"]
    done = subprocess.run(
        argv,
        env=environment(part),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def main() -> None:
    rootfs, at, folder = map(Path, sys.argv[1:4])
    provider = json.loads(sys.argv[4])
    lay_out(folder)
    subprocess.run(["sh", "-eu", "-c", MOUNTS, "mount", rootfs, at, folder], check=True)
    serve(folder)
    login, status = provider["login"], provider["status"]
    ended, words = login_by_requests(at, login) if login["requests"] else command_result(at, login)
    logged_in = command_result(at, status)[0] if status else None
    json.dump({"login": ended, "words": words, "status": logged_in}, sys.stdout)


if __name__ == "__main__":
    main()
