"""Close codes and reasons of viewers, masked addresses, and the metrics of viewers."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from websockets.frames import Close

from polydev.controller.api.novnc import masked
from polydev.controller.entities import Session, Vm
from polydev.controller.problem_details import Unavailable
from polydev.controller.relay import close_reasons
from polydev.controller.relay.close_reasons import (
    CloseReason,
    ViewerRefused,
    close_reason_for,
    not_ready,
    session_over,
)
from polydev.controller.relay.metrics import RelayMetrics
from polydev.errors import NotAllowed, NotAuthenticated, SessionExpired, SessionNotFound, VmError

AT = datetime(2026, 11, 21, 10, tzinfo=timezone.utc)
CONSTANTS = [each for each in vars(close_reasons).values() if isinstance(each, CloseReason)]


@pytest.mark.parametrize("closing", CONSTANTS, ids=lambda closing: closing.cause)
def test_every_close_code_is_valid_and_has_a_reason(closing: CloseReason) -> None:
    assert closing.reason
    if closing is not close_reasons.VIEWER_VANISHED:
        Close(closing.code, closing.reason).check()


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (NotAuthenticated("there is no token"), 4401, "there is no token"),
        (
            NotAllowed("access denied: the session belongs to another user"),
            4403,
            "access denied: the session belongs to another user",
        ),
        (SessionNotFound("there is no session x"), 4404, "there is no session x"),
        (SessionExpired("the session is over"), 4410, "the session is over"),
        (HTTPException(429, "too many requests: wait 1 s"), 1013, "too many requests: wait 1 s"),
        (Unavailable("the keys cannot be fetched"), 1013, "the keys cannot be fetched"),
        (OperationalError("SELECT secret", None, Exception()), 1013, close_reasons.LATER.reason),
        (VmError("unit microvm@2 is unknown"), 1011, close_reasons.UNEXPECTED.reason),
        (ValueError("a secret"), 1011, close_reasons.UNEXPECTED.reason),
        (ViewerRefused(close_reasons.VNC_DOWN), 1011, close_reasons.VNC_DOWN.reason),
    ],
)
def test_errors_map_to_close_code_and_reason(error: Exception, code: int, reason: str) -> None:
    closing = close_reason_for(error)
    assert (closing.code, closing.reason) == (code, reason)


def test_session_over_reason_names_its_end_state() -> None:
    session = Session("id", "user", "claude", "failed", "vm", AT, AT, AT, reason="no network")
    closing = session_over(session)
    assert closing.code == 4410
    assert closing.reason == "the session is over (failed): no network"


def test_not_ready_reason_names_the_boot_stage() -> None:
    vm = Vm("vm", 2, "192.168.100.2", "starting", "network", AT, "4f1d", AT)
    assert not_ready(vm).code == 4425
    assert not_ready(vm).reason == "the VM is not ready yet; boot stage: network"


def test_masked_address_hides_its_last_part() -> None:
    assert masked("192.168.100.17") == "192.168.100.x"


def test_metrics_count_open_and_closed_viewers() -> None:
    class Seen:
        bytes_to, bytes_from = 100, 10

    gone, still = Seen(), Seen()
    registry = CollectorRegistry()
    figures = RelayMetrics(registry, lambda: [still])  # type: ignore[list-item]
    figures.closed(gone, "viewer-closed")  # type: ignore[arg-type]
    figures.refused("not-allowed")
    text = generate_latest(registry).decode()
    assert "polydev_relay_viewers 1.0" in text
    assert 'polydev_relay_bytes_total{direction="to_viewer"} 200.0' in text
    assert 'polydev_relay_bytes_total{direction="to_vm"} 20.0' in text
    assert 'polydev_relay_refusals_total{cause="not-allowed"} 1.0' in text
    assert 'polydev_relay_closings_total{cause="viewer-closed"} 1.0' in text
