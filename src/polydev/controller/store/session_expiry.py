"""Rules of when sessions expire, and why. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from polydev.controller.entities import Session
from polydev.controller.settings import SessionLimits


def after_heartbeat(session: Session, at: datetime, limits: SessionLimits) -> Session:
    """Return a session after a heartbeat; while its VM boots, its end does not change."""
    boots = session.state in ("vm_creating", "vm_starting")
    expires_at = session.expires_at if boots else idle_end(session, at, limits)
    return replace(session, heartbeat_at=at, expires_at=expires_at)


def idle_end(session: Session, at: datetime, limits: SessionLimits) -> datetime:
    """Return when a session ends if this is its last use."""
    return min(
        at + timedelta(seconds=limits.idle_seconds),
        session.created_at + timedelta(seconds=limits.max_seconds),
    )


def expiry_reason(session: Session, limits: SessionLimits) -> str:
    """Return why a session expired."""
    longest = session.created_at + timedelta(seconds=limits.max_seconds)
    if session.expires_at >= longest:
        return f"the session reached its maximum duration of {limits.max_seconds:g} s"
    if session.heartbeat_at is None:
        return f"no viewer and no heartbeat for {limits.idle_seconds:g} s after the VM was ready"
    return f"no viewer and no heartbeat for {limits.idle_seconds:g} s"
