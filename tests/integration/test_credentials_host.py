"""The credentials key on a real host: kept over deployments, and rotated over SSH."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from polydev.client.controller_cli import HostController
from polydev.client.credentials_key import ensure_key, new_key, rotate
from polydev.http_client import HttpSession
from tests.hosts import DeployedHost

SECRET = "/etc/master-controller/secrets/credentials-key"
PATH = "/api/auth/credentials"
CREDENTIALS = {"token": "marker-of-a-secret-that-nobody-sees"}


def caller(host: DeployedHost) -> HttpSession:
    """A new user of the host's controller."""
    there = HostController(host.host.target)
    user = there.ask("user", "add", "--role", "user")["id"]
    token = there.ask("token", "create", "--user", user, "--name", "tests")["token"]
    session = HttpSession(f"http://{host.lab.address}:4000", timeout_seconds=60)
    session.headers["Authorization"] = f"Bearer {token}"
    return session


def stored(client: HttpSession) -> object:
    answer = client.get(f"{PATH}/claude")
    answer.raise_for_status()
    return answer.json()["credentials"]


def test_credentials_key_rotation_and_rollback_keep_credentials(
    deployed: DeployedHost, tmp_path: Path
) -> None:
    own = ensure_key(deployed.lab.folder)
    assert deployed.inside(f"cat {SECRET}") == own.read_text().strip()
    before = deployed.records()[0].state
    target = deployed.host.target
    with caller(deployed) as client:
        body: dict[str, Any] = {"provider": "claude", "credentials": CREDENTIALS}
        client.post(f"{PATH}/store", json=body).raise_for_status()
        keys = tmp_path / "keys"
        keys.write_text(f"{new_key()}\n{own.read_text()}")
        record = replace(deployed, data={"secrets": {"credentials-key": str(keys)}}).deploy()
        assert stored(client) == CREDENTIALS
        done = rotate(target)
        assert (done["sealed"] >= 1, done["locked"]) == (True, 0)
        assert rotate(target) == {**done, "sealed": 0, "current": done["sealed"] + done["current"]}
        assert stored(client) == CREDENTIALS

        deployed.rollback(to=before)  # secret and database together
        assert deployed.inside(f"cat {SECRET}") == own.read_text().strip()
        assert stored(client) == CREDENTIALS
        log = (deployed.logs / f"deployment-{record.id}.log").read_text()
        journal = deployed.journal("--unit master-controller")
        for secret in (*keys.read_text().split(), CREDENTIALS["token"]):
            assert secret not in f"{log}{journal}"
        client.delete(PATH).raise_for_status()
    assert deployed.deploy().changes == 0
    assert rotate(target)["sealed"] == 0
