"""The program of polydev-credentials@.service: one request of the agent, as the desktop's user.

The agent has no rights in the user's home, and this program has only the user's rights. So files
that the user puts there cannot give access to anything that the user could not access anyway.

    a line of JSON on the socket that is standard input -> a line of JSON back
"""

from __future__ import annotations

import json
import os
import sys

from polydev.agent import credentials_file
from polydev.agent.errors import CheckFailed
from polydev.agent.providers import provider_of
from polydev.agent.settings import settings_from_arguments

SOCKET = 0


def main(arguments: list[str]) -> None:
    """Answer one request."""
    settings = settings_from_arguments(arguments)
    with open(SOCKET, "rb", closefd=False) as file:
        request = json.loads(file.readline())
    reply: dict[str, object]
    try:
        reply = {"value": answer(request, settings.providers, os.environ["HOME"])}
    except CheckFailed as failure:
        reply = {"problem": str(failure)}
    data = json.dumps(reply).encode() + b"\n"
    while data:
        data = data[os.write(SOCKET, data) :]


def answer(request: dict[str, object], providers: str, home: str) -> dict[str, object] | None:
    """Read, write or remove a provider's credentials; raises CheckFailed."""
    kept = provider_of(providers, str(request["provider"])).credentials
    if kept is None:
        raise CheckFailed("this provider's credentials are not handed over")
    if request["verb"] == "read":
        return credentials_file.read(home, kept)
    if request["verb"] == "write":
        credentials_file.write(home, kept, request["credentials"])
    else:
        credentials_file.remove(home, kept)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
