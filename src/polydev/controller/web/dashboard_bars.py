"""Usage of the host as bars: CPU, memory, disks, temperature, slots; pure."""

from __future__ import annotations

from dataclasses import dataclass

from polydev.controller.host.system_status import Status, SystemStatus
from polydev.controller.web.css_classes import LEVELS, Level
from polydev.controller.web.formatting import exact_percent_text, size_text
from polydev.controller.web.texts import text


@dataclass(frozen=True)
class Bar:
    """A bar. `word` says the same as its colour; `figures` has the amounts."""

    label: str
    percent: float | None
    level: Level
    word: str
    value: str
    figures: str


def bars_of(system: SystemStatus) -> list[Bar]:
    """Return bars of CPU, memory, each disk and, with a sensor, the temperature."""
    cpu, memory, heat = system.cpu, system.memory, system.temperature
    cores = text("dashboard.bars.cores", cores=cpu.cores or "?")
    bars = [
        _bar(text("dashboard.bars.cpu"), cpu.usage, cpu.status, cpu.detail or cores),
        _bar(
            text("dashboard.bars.memory"),
            memory.percent,
            memory.status,
            memory.detail or _used(memory.used, memory.total),
        ),
    ]
    for disk in system.disk:
        label = text("dashboard.bars.disk", mount=disk.mount)
        figures = disk.detail or _used(disk.used, disk.size)
        bars.append(_bar(label, disk.percent, disk.status, figures))
    if heat is not None and heat.current is not None:
        bars.append(_heat(heat.current, heat.critical, heat.status))
    return bars


def _bar(label: str, percent: float | None, status: Status, figures: str) -> Bar:
    return Bar(
        label,
        percent,
        LEVELS[status],
        text(f"dashboard.level.{status}"),
        exact_percent_text(percent),
        figures,
    )


def _used(used: int | None, total: int | None) -> str:
    return text("dashboard.bars.used", used=size_text(used), total=size_text(total))


def _heat(celsius: float, critical: float | None, status: Status) -> Bar:
    """Return the temperature as a percentage of its critical value; red once an alert is due."""
    level: Level = "good" if status == "healthy" else "bad"
    percent = round(min(100 * celsius / critical, 100.0), 1) if critical else None
    figures = (
        text("dashboard.bars.critical", celsius=f"{critical:g}")
        if critical
        else text("dashboard.bars.no_critical")
    )
    label = text("dashboard.bars.temperature")
    return Bar(label, percent, level, text(f"dashboard.level.{status}"), f"{celsius:g} °C", figures)


def slots_bar(held: int, total: int) -> Bar:
    """Return the share of slots in use."""
    percent = round(100 * held / total, 1) if total else None
    is_full = total > 0 and held >= total
    word = text("dashboard.pool.full") if is_full else text("dashboard.pool.free")
    value = text("dashboard.pool.slots", held=held, total=total)
    level: Level = "warn" if is_full else "good"
    return Bar(text("dashboard.pool.slots_label"), percent, level, word, value, "")
