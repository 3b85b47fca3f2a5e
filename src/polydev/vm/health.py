"""Ask the agent of a VM for its health, from outside."""

from __future__ import annotations

import requests

from polydev import http_client
from polydev.errors import VmError, VmTimeout
from polydev.vm.config import Ports

TIMEOUT_SECONDS = 10.0


def agent_health(
    ports: Ports, timeout_seconds: float = TIMEOUT_SECONDS
) -> tuple[int, dict[str, object]]:
    """Return HTTP status and body of the agent's /health; a body that is no JSON object is empty.

    Raises VmError if nothing answers, VmTimeout if the answer takes too long.
    """
    try:
        answer = http_client.get(f"{ports.agent_url}/health", timeout_seconds)
    except requests.Timeout:
        raise VmTimeout(
            f"the agent does not answer on {ports.agent_url} within {timeout_seconds:g} s"
        ) from None
    except requests.RequestException as error:
        why = http_client.reason(error)
        raise VmError(f"the agent does not answer on {ports.agent_url}: {why}") from error
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        body = {}
    return answer.status_code, body if isinstance(body, dict) else {}
