"""The doctor's probe: its questions to a host's systemd."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.client import host_probe
from polydev.controller.health import DATABASE_TIMEOUT_SECONDS
from polydev.controller.tls import server_context
from tests.certificates import make_tls
from tests.loopback import as_json, served

# A fake systemctl that lists the units in the requested state.
SYSTEMCTL = """#!/bin/sh
for word; do case $word in
--state=*) state=${word#--state=};;
--all) all=yes;;
microvm@*) pattern=$word;;
esac; done
test "$all" = yes && test "$pattern" = 'microvm@*' || exit 1
for unit in microvm@2.service/active microvm@3.service/failed microvm@4.service/failed; do
    case $unit in */$state) echo "${unit%/*} loaded ${unit#*/} dead VM";; esac
done
"""


def test_failed_vms_lists_only_failed_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert host_probe._failed_vms() == ["microvm@3.service", "microvm@4.service"]


@pytest.mark.parametrize("with_tls", [False, True])
def test_controller_is_asked_over_http_or_tls(tmp_path: Path, *, with_tls: bool) -> None:
    tls = make_tls(tmp_path, name="vms.example.com")
    context = server_context(tls.certificate.read_text(), tls.key.read_text())
    report = as_json({"status": "healthy"})
    with served(lambda _: report, tls=context if with_tls else None) as server:
        host = {
            "controllerPort": int(server.url.rpartition(":")[2]),
            "controllerCertificate": str(tls.certificate) if with_tls else None,
        }
        assert host_probe._controller(host) == {"status": "healthy"}


def test_controller_has_time_to_say_that_its_database_does_not_answer() -> None:
    assert host_probe.ANSWER_SECONDS > DATABASE_TIMEOUT_SECONDS
