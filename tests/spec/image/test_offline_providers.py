"""The providers of an image at rest: their tools are there, and accept their own credentials.

The credentials are synthetic: they have the form that the tools write, and belong to nobody.
"""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import PurePosixPath
from typing import Any

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.offline

FOLDER = "/usr/share/polydev/providers"
FAR_AWAY_SECONDS = 4102444800  # 2100-01-01


def web_token(**claims: Any) -> str:
    """An unsigned JSON web token."""
    parts = [{"alg": "none", "typ": "JWT"}, {"exp": FAR_AWAY_SECONDS, **claims}, "signature"]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts]
    return b".".join(part.rstrip(b"=") for part in encoded).decode()


OF_CODEX = web_token(
    email="ada@example.org",
    **{"https://api.openai.com/auth": {"chatgpt_plan_type": "plus", "chatgpt_account_id": "a"}},
)
SYNTHETIC: dict[str, dict[str, Any]] = {
    "claude": {
        "claudeAiOauth": {
            "accessToken": "sk-ant-oat01-synthetic",
            "refreshToken": "sk-ant-ort01-synthetic",
            "expiresAt": FAR_AWAY_SECONDS * 1000,
            "scopes": ["user:inference", "user:profile"],
            "subscriptionType": "max",
        }
    },
    "codex": {
        "auth_mode": "chatgpt",
        "OPENAI_API_KEY": None,
        "tokens": {
            "id_token": OF_CODEX,
            "access_token": OF_CODEX,
            "refresh_token": "rt_synthetic",
            "account_id": "a",
        },
        "last_refresh": "2026-11-29T00:00:00Z",
    },
}


def provider_of(host: Host, name: str) -> dict[str, Any]:
    provider: dict[str, Any] = json.loads(host.file(f"{FOLDER}/{name}.json").content_string)
    return provider


def test_provider_commands_exist(host: Host) -> None:
    files = host.run(f"ls {FOLDER}").stdout.split()
    assert files, "the image has no providers"
    for file in files:
        provider = provider_of(host, PurePosixPath(file).stem)
        for part in (provider["login"], provider["status"]):
            if part is not None:
                found = host.run(f"command -v {shlex.quote(part['command'][0])}")
                assert found.rc == 0, (
                    f"{file} names the program {part['command'][0]}, which is not in the image"
                )


@pytest.mark.parametrize("name", SYNTHETIC)
def test_tool_accepts_stored_credentials(host: Host, name: str) -> None:
    provider = provider_of(host, name)
    kept, home = provider["credentials"], PurePosixPath("/tmp", name)
    status = f"HOME={home} {shlex.join(provider['status']['command'])}"

    def put(credentials: dict[str, Any]) -> None:
        for path, content in {**kept["also"], kept["file"]: credentials}.items():
            words = [json.dumps(content), str(home / path), str((home / path).parent)]
            text, file, folder = map(shlex.quote, words)
            written = host.run(f"mkdir -p {folder} && printf %s {text} >{file}")
            assert written.rc == 0, f"{home / path} cannot be written: {written.stderr.strip()}"

    assert host.run(status).rc != 0, f"{name} reports that it is logged in, without credentials"
    put(SYNTHETIC[name])
    shown = host.run(status)
    assert shown.rc == 0, (
        f"{name} does not accept credentials of its own form: {shown.stdout}{shown.stderr}".strip()
    )
    *above, last = kept["requires"][0].split(".")
    lacking = json.loads(json.dumps(SYNTHETIC[name]))
    within = lacking
    for key in above:
        within = within[key]
    del within[last]
    put(lacking)
    assert host.run(status).rc != 0, (
        f"{name} accepts credentials without {kept['requires'][0]}, which its provider requires"
    )
