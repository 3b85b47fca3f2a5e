"""The status of the host's parts, as the operators' endpoints answer it, and its levels.

In bytes, percent from 0 to 100, degrees Celsius and seconds. Values that cannot be measured are
null, with the status `unknown` and the reason in `detail`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from polydev.controller.entities import Alert, Severity
from polydev.controller.settings import WARM_PERCENT, AlertSettings

Status = Literal["healthy", "warning", "critical", "unknown"]
# The most urgent one last.
_BY_URGENCY: tuple[Status, ...] = ("healthy", "unknown", "warning", "critical")


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class PartStatus(FrozenModel):
    status: Status
    detail: str | None = Field(default=None, exclude_if=lambda value: value is None)


class CpuStatus(PartStatus):
    """`usage` is of all cores together, since the last measurement or over half a second."""

    usage: float | None = None
    cores: int | None = None
    model: str | None = None


class MemoryStatus(PartStatus):
    """`free` is what a new program could use, including caches; the rest is `used`."""

    total: int | None = None
    used: int | None = None
    free: int | None = None
    percent: float | None = None


class DiskStatus(PartStatus):
    """One filesystem. `available` is what is left for users other than root."""

    filesystem: str
    size: int | None = None
    used: int | None = None
    available: int | None = None
    percent: float | None = None
    mount: str


class DisksStatus(PartStatus):
    disk: list[DiskStatus]


class InterfaceStatus(FrozenModel):
    """Bytes since the interface is up; rates since the last measurement, if that was recent."""

    name: str
    status: Literal["up", "down"]
    rx_bytes: int
    tx_bytes: int
    rx_bytes_per_second: float | None = None
    tx_bytes_per_second: float | None = None


class NetworkStatus(PartStatus):
    """`critical` if no interface but the loopback is up."""

    interfaces: list[InterfaceStatus]


class TemperatureStatus(PartStatus):
    """The hottest sensor. `critical` is the value that it names; without one it is healthy."""

    current: float | None = None
    critical: float | None = None


class SystemStatus(FrozenModel):
    """All parts. `unavailable` has the reason for each part that could not be measured."""

    status: Status
    cpu: CpuStatus
    memory: MemoryStatus
    disk: list[DiskStatus]
    network: NetworkStatus
    temperature: TemperatureStatus | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    uptime: float | None
    load_average: list[float] | None
    unavailable: dict[str, str] = Field(default={}, exclude_if=lambda value: not value)


class NetworkCheck(PartStatus):
    """One check of the VM network; `hint` says what to do, if anything."""

    name: str
    detail: str
    hint: str | None = None


class NetworkHealth(FrozenModel):
    status: Status
    checks: list[NetworkCheck]


class AlertReport(FrozenModel):
    """`cleared_at` is null while the alert stands."""

    id: int
    rule: str
    subject: str
    severity: Severity
    message: str
    value: float | None
    raised_at: datetime
    cleared_at: datetime | None

    @classmethod
    def of(cls, alert: Alert) -> AlertReport:
        return cls(**asdict(alert))


class AlertsReport(FrozenModel):
    standing: list[AlertReport]
    history: list[AlertReport]


def status_of_percent(percent: float, limits: AlertSettings) -> Status:
    """Return the status of a percentage; the critical limit itself is still a warning."""
    if percent > limits.critical_percent:
        return "critical"
    return "warning" if percent >= limits.warning_percent else "healthy"


def status_of_temperature(celsius: float, critical_celsius: float | None) -> Status:
    """Return `critical` from the sensor's critical value on, `warning` above WARM_PERCENT of it.

    A sensor that names no critical value is `healthy`.
    """
    if critical_celsius is None:
        return "healthy"
    if celsius >= critical_celsius:
        return "critical"
    return "warning" if 100.0 * celsius > WARM_PERCENT * critical_celsius else "healthy"


def percent_text(what: str, percent: float | None) -> str:
    """Return text about how much is used; None stands for what cannot be measured."""
    if percent is None:
        return f"{what} cannot be measured"
    return f"{what} is at {percent:g} %"


def temperature_text(celsius: float, critical_celsius: float) -> str:
    return f"temperature is at {celsius:g} °C, critical from {critical_celsius:g} °C"


def worst(statuses: Iterable[Status]) -> Status:
    return max(statuses, key=_BY_URGENCY.index, default="unknown")
