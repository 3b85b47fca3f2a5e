#!/usr/bin/python3 -I
"""testtool: a command line tool that logs in as those of real providers do, for tests.

    testtool login    log in by browser: authorization code with PKCE, called back at loopback
    testtool status   exit status 0 if the provider takes the credentials that are stored here
    testtool logout   have the provider revoke them, and remove them

TESTTOOL_ISSUER names the OpenID provider, TESTTOOL_SECONDS how long `login` waits for the browser.
The credentials are ~/.testtool/credentials.json. An access token that is over is renewed by the
refresh token, which the provider replaces each time.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import urlsafe_b64encode
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import Empty, Queue
from socketserver import ThreadingTCPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT = "testtool"
SCOPE = "openid profile offline_access"
FILE = Path.home() / ".testtool" / "credentials.json"
KEPT = ("access_token", "refresh_token", "id_token")
ANSWER_SECONDS = 120.0
DONE_COLOUR, FAILED_COLOUR = "#206020", "#602020"


class Failed(Exception):
    """An error with a message for the user."""


def ask(url: str, form: dict[str, str] | None = None, token: str = "") -> dict[str, Any]:
    """The JSON object that the provider answers. Raises Failed with the provider's own words."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = None if form is None else urlencode(form).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        raise Failed(f"the provider refused: {refusal(error)}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Failed(f"the provider at {issuer()} cannot be reached: {reason}") from error
    found: dict[str, Any] = json.loads(body or b"{}")
    return found


def refusal(error: urllib.error.HTTPError) -> str:
    try:
        said = json.loads(error.read())
        return f"{said['error']}: {said.get('error_description', '')}".rstrip(": ")
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}"


def issuer() -> str:
    try:
        return os.environ["TESTTOOL_ISSUER"]
    except KeyError:
        raise Failed("TESTTOOL_ISSUER names no provider") from None


def endpoints() -> dict[str, str]:
    return ask(f"{issuer()}/.well-known/openid-configuration")


def unpadded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


class Callback(ThreadingTCPServer):
    """Listens at a free port of loopback for the browser's return.

    `answers` gets what the browser brought: the parameters of each request for /callback.
    """

    daemon_threads = True  # browsers open connections that they do not use
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Returned)
        self.state = secrets.token_urlsafe(16)
        self.answers: Queue[dict[str, str]] = Queue()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/callback"

    def code_of(self, answer: dict[str, str]) -> str:
        """The code of an answer. Raises Failed where the login was denied or is not this one."""
        if answer.get("state") != self.state:
            raise Failed("the browser came back from another login than this one: log in again")
        if "error" in answer:
            words = answer.get("error_description", answer["error"])
            raise Failed(f"the login was denied: {words}")
        if "code" not in answer:
            raise Failed("the browser came back without a code: log in again")
        return answer["code"]


class Returned(BaseHTTPRequestHandler):
    server: Callback

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        if place.path != "/callback":
            self.send_error(404)
            return
        answer = parameters(place.query)
        try:
            self.server.code_of(answer)
            colour, words = DONE_COLOUR, "testtool has your login. You can close this page."
        except Failed as failure:
            colour, words = FAILED_COLOUR, str(failure)
        body = f'<!doctype html><body style="background:{colour};color:white">{html.escape(words)}'
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body.encode())
        self.server.answers.put(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests: the terminal is the user's."""


def parameters(query: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(query).items()}


def login() -> None:
    known, verifier = endpoints(), secrets.token_urlsafe(48)
    with Callback() as callback:
        request = {
            "client_id": CLIENT,
            "response_type": "code",
            "redirect_uri": callback.url,
            "scope": SCOPE,
            "prompt": "consent",
            "state": callback.state,
            "code_challenge": unpadded(hashlib.sha256(verifier.encode()).digest()),
            "code_challenge_method": "S256",
        }
        url = f"{known['authorization_endpoint']}?{urlencode(request)}"
        print(f"Log in with your browser:\n\n{url}\n", flush=True)
        print("Or paste the address at which your browser could not open a page:", flush=True)
        open_browser(url)
        code = callback.code_of(answer_of(callback))
    form = {
        "grant_type": "authorization_code",
        "client_id": CLIENT,
        "code": code,
        "code_verifier": verifier,
        "redirect_uri": callback.url,
    }
    store(ask(known["token_endpoint"], form))
    print("Logged in.")


def open_browser(url: str) -> None:
    browser = os.environ.get("BROWSER", "xdg-open")
    try:
        subprocess.Popen([browser, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError as error:
        print(f"{browser} cannot be started: {error.strerror}", file=sys.stderr)


def answer_of(callback: Callback) -> dict[str, str]:
    """Wait until the browser has called back, or the user has pasted where it wanted to."""
    seconds = float(os.environ.get("TESTTOOL_SECONDS", "600"))
    for work in (callback.serve_forever, lambda: take_pasted(callback)):
        Thread(target=work, daemon=True).start()
    try:
        return callback.answers.get(timeout=seconds)
    except Empty:
        raise Failed(f"the browser did not come back within {seconds:g} s: log in again") from None


def take_pasted(callback: Callback) -> None:
    """Take the first line of standard input, if there ever is one."""
    if line := os.read(0, 8192).decode(errors="replace").strip():
        callback.answers.put(parameters(urlsplit(line).query))


def store(answer: dict[str, Any]) -> dict[str, Any]:
    """Write what the token endpoint answered, such that nobody else can ever read it."""
    made = {name: answer[name] for name in KEPT}
    made |= {"expires_at": int(time.time()) + answer["expires_in"], "issuer": issuer()}
    FILE.parent.mkdir(mode=0o700, exist_ok=True)
    new = FILE.with_name(f"{FILE.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600, exist_ok=False)
    new.write_text(json.dumps(made))
    new.rename(FILE)
    return made


def stored() -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(FILE.read_text())
    except FileNotFoundError:
        raise Failed("not logged in") from None
    except ValueError:
        raise Failed(f"{FILE} is no JSON") from None
    if missing := [name for name in KEPT if not found.get(name)]:
        raise Failed(f"{FILE} lacks {', '.join(missing)}")
    return found


def status() -> None:
    known, credentials = endpoints(), stored()
    if credentials.get("expires_at", 0) <= time.time():
        form = {"grant_type": "refresh_token", "client_id": CLIENT}
        form["refresh_token"] = credentials["refresh_token"]
        credentials = store(ask(known["token_endpoint"], form))
    user = ask(known["userinfo_endpoint"], token=credentials["access_token"])
    print(f"Logged in as {user['sub']}.")


def logout() -> None:
    known, credentials = endpoints(), stored()
    ask(known["revocation_endpoint"], {"client_id": CLIENT, "token": credentials["refresh_token"]})
    FILE.unlink()
    print("Logged out.")


def main() -> None:
    verbs = {"login": login, "status": status, "logout": logout}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        sys.exit(f"usage: testtool {'|'.join(verbs)}")
    try:
        verbs[sys.argv[1]]()
    except Failed as failure:
        sys.exit(f"testtool: {failure}")


if __name__ == "__main__":
    main()
