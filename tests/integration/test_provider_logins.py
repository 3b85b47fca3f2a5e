"""Logins of the providers' real tools, by their files in golden/providers.

The servers are stand-ins, since the providers' own would want an account; docs/providers.md has
what that leaves open.
"""

from __future__ import annotations

import json
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from polydev import processes
from polydev.image.store import ImageStore
from polydev.image_layout import ROOTFS
from polydev.image_record import ImageRecord
from polydev.providers import guest_json, load_providers
from tests import provider_stand_ins
from tests.certificates import make_tls
from tests.images import GOLDEN

PROVIDERS = load_providers(GOLDEN / "providers")
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
NAMESPACES = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child")


@pytest.mark.parametrize("name", PROVIDERS)
def test_provider_tool_login_writes_declared_credentials(
    name: str, image: ImageRecord, store: ImageStore, tmp_path: Path
) -> None:
    at, folder = tmp_path / "root", tmp_path / "tmp"
    at.mkdir()
    tls = make_tls(folder, *provider_stand_ins.NAMES)
    trusted = AUTHORITIES.read_text() + tls.authority.read_text()
    (folder / "authorities.pem").write_text(trusted)
    rootfs = store.path(image.digest) / ROOTFS
    program = [sys.executable, provider_stand_ins.__file__]
    words = [str(rootfs), str(at), str(folder), guest_json(PROVIDERS[name]).decode()]
    ended = json.loads(processes.run([*NAMESPACES, *program, *words]).stdout)
    assert ended["login"] == 0, ended["words"]
    kept = PROVIDERS[name].credentials
    assert kept is not None
    credentials = json.loads((folder / "home" / kept.file).read_bytes())
    assert all(value_at(credentials, key) for key in kept.requires)
    assert ended["status"] == (None if PROVIDERS[name].status is None else 0)


def value_at(credentials: dict[str, Any], key: str) -> Any:
    return reduce(lambda within, part: within[part], key.split("."), credentials)
