"""deployments: one line for each, and the details of one."""

from __future__ import annotations

from datetime import datetime, timezone

from polydev.deployment.history import documents
from polydev.deployment_records import Record
from verbs.deployments import details, line

RECORD = Record(
    id="20250131_120000-aaaa",
    number=3,
    status="rolled-back",
    started_at=datetime(2025, 1, 31, 12, tzinfo=timezone.utc),
    who="ada@desk",
    backup=True,
    operations=["Install packages"],
    reason="the deploy process ended without an answer\nTraceback\nKeyError",
    gate={"ok": False, "checks": [{"name": "bridge", "ok": False, "detail": "br-vm is down"}]},
    undone={"restored": {"files": 3}},
)


def test_multiline_reason_is_shown_on_one_line() -> None:
    shown = line(RECORD, is_current=True)
    assert shown.splitlines() == [shown]
    assert shown.startswith("* 20250131_120000-aaaa ")
    assert shown.endswith("the deploy process ended without an answer …")
    assert "changes" in line(RECORD.model_copy(update={"reason": None}), is_current=False)


def test_details_show_everything() -> None:
    shown = details(RECORD)
    for text in ("ada@desk", "KeyError", "Install packages", "NO  bridge: br-vm is down", "files"):
        assert text in shown


def test_consecutive_json_documents_are_parsed() -> None:
    assert documents('{"a": 1}\n{"b": [2]}\n\n null\n') == [{"a": 1}, {"b": [2]}, None]
    assert documents("\n") == []
