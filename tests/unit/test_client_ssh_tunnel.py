"""A controller through SSH: the messages when ssh cannot connect."""

from __future__ import annotations

import socket

import pytest

from polydev.client.ssh_tunnel import tunnel
from polydev.errors import DeployError
from polydev.ssh import SshTarget


def test_unreachable_host_is_reported_with_the_ssh_error() -> None:
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        target = SshTarget("b-1", "127.0.0.1", user="deploy", port=port)
        with pytest.raises(DeployError) as told, tunnel(target, "http://127.0.0.1:4000"):
            pass
    assert "cannot reach b-1 over SSH" in told.value.message
    assert "Connection refused" in told.value.message
    assert f"-p {port}" in str(told.value.hint)
