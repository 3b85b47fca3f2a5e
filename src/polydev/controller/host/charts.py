"""The host's history as columns for charts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from polydev.controller.host.history import START_KINDS, Row, rows
from polydev.controller.host.history_cache import LastDay
from polydev.controller.machines.bridge_status import BRIDGE

Number = float | int | None
PLAIN = (
    "cpu_percent",
    "memory_percent",
    "temperature_celsius",
    "slots_total",
    "slots_held",
    "pool_vms",
    "pool_primed_vms",
)
STARTING = ("sessions_vm_creating", "sessions_vm_starting")
DISK = "disk_percent["
# Thinned samples are a minute apart; a longer time without a sample is a gap.
GAP_SECONDS = 300


def chart_columns(day: LastDay) -> dict[str, list[Number]]:
    """Return a list for each column, all of one length: `at` in seconds since 1970, and values.

    Names are those of the export, and besides: `received_bytes_per_second` and `sent_…` of all the
    host's own interfaces together, and `sessions`, the live ones. Columns without any value are
    left out. A gap between samples has one row without values.
    """
    found: list[dict[str, Number]] = []
    for (at, _), row in zip(day.samples, rows(day.samples, day.starts), strict=True):
        figures = _figures(at, row)
        if found and (figures["at"] or 0) - (found[-1]["at"] or 0) > GAP_SECONDS:
            found.append(
                {"at": (found[-1]["at"] or 0) + 1}
            )  # so that charts draw no line across a gap
        found.append(figures)
    names = dict.fromkeys(
        name for each in found for name, value in each.items() if value is not None
    )
    return {"at": [], **{name: [each.get(name) for each in found] for name in names}}


def _figures(at: datetime, row: Row) -> dict[str, Number]:
    figures: dict[str, Number] = {"at": round(at.timestamp())}
    figures |= {name: _number(row.get(name)) for name in PLAIN}
    figures |= {name: _number(value) for name, value in row.items() if name.startswith(DISK)}
    for direction in ("received", "sent"):
        figures[f"{direction}_bytes_per_second"] = _own_rate(direction, row)
    figures["sessions"] = _total(row, (name for name in row if name.startswith("sessions_")))
    figures["sessions_starting"] = _total(row, STARTING)
    figures["vms"] = _total(row, (name for name in row if name.startswith("vms_")))
    for how in START_KINDS:
        for kind in ("median", "max"):
            name = f"start_{kind}_seconds[{how}]"
            figures[name] = _number(row.get(name))
    return figures


def _own_rate(direction: str, row: Row) -> Number:
    """Return the rate of all interfaces except the VMs' bridge, whose traffic passes the others."""
    prefix = f"{direction}_bytes_per_second["
    names = (name for name in row if name.startswith(prefix) and name != f"{prefix}{BRIDGE}]")
    return _total(row, names)


def _total(row: Mapping[str, object], names: Iterable[str]) -> Number:
    known = [value for value in (_number(row.get(name)) for name in names) if value is not None]
    return round(sum(known), 1) if known else None


def _number(value: object) -> Number:
    return value if isinstance(value, (int, float)) else None
