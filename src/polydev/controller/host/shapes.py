"""The shapes of the host's figures, named as the operators' endpoints say them.

Bytes, percent from 0 to 100, degrees Celsius, seconds. What cannot be measured is null, its
status `unknown`, and `detail` says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from polydev.controller.settings import WARM_PERCENT, AlertRules

Status = Literal["healthy", "warning", "critical", "unknown"]
# From what needs nobody's eye to what needs it most.
_BY_URGENCY: tuple[Status, ...] = ("healthy", "unknown", "warning", "critical")


class Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class Part(Figures):
    status: Status
    detail: str | None = Field(default=None, exclude_if=lambda value: value is None)


class Cpu(Part):
    """`usage` of all cores together, since it was measured last or over a moment."""

    usage: float | None = None
    cores: int | None = None
    model: str | None = None


class Memory(Part):
    """`free` is what a new program could have, caches given up; the rest is `used`."""

    total: int | None = None
    used: int | None = None
    free: int | None = None
    percent: float | None = None


class Disk(Part):
    """One filesystem. `available` is what remains to those who are not root."""

    filesystem: str
    size: int | None = None
    used: int | None = None
    available: int | None = None
    percent: float | None = None
    mount: str


class Disks(Part):
    disk: list[Disk]


class Interface(Figures):
    """Bytes since it is up, and a second since it was measured last, if that was lately."""

    name: str
    status: Literal["up", "down"]
    rx_bytes: int
    tx_bytes: int
    rx_bytes_per_second: float | None = None
    tx_bytes_per_second: float | None = None


class Network(Part):
    """`critical` if no interface but the loopback is up."""

    interfaces: list[Interface]


class Temperature(Part):
    """The hottest sensor. `critical` is the value that it names; without one all is healthy."""

    current: float | None = None
    critical: float | None = None


class System(Figures):
    """All in one. `unavailable` says of each part that could not be measured why."""

    status: Status
    cpu: Cpu
    memory: Memory
    disk: list[Disk]
    network: Network
    temperature: Temperature | None = Field(default=None, exclude_if=lambda value: value is None)
    uptime: float | None
    load_average: list[float] | None
    unavailable: dict[str, str] = Field(default={}, exclude_if=lambda value: not value)


class Check(Part):
    """One check. `hint` says what to do, where something is to be done."""

    name: str
    detail: str
    hint: str | None = None


class NetworkHealth(Figures):
    status: Status
    checks: list[Check]


def status_of(percent: float, limits: AlertRules) -> Status:
    """Below the lower limit all is well; the upper limit itself is still a warning."""
    if percent > limits.critical_percent:
        return "critical"
    return "warning" if percent >= limits.warning_percent else "healthy"


def temperature_status(celsius: float, critical_celsius: float | None) -> Status:
    """Return `warning` above 80 % of the sensor's critical value and `critical` from that value on.

    A sensor that names no critical value is `healthy`.
    """
    if critical_celsius is None:
        return "healthy"
    if celsius >= critical_celsius:
        return "critical"
    return "warning" if 100.0 * celsius > WARM_PERCENT * critical_celsius else "healthy"


def percent_words(what: str, percent: float | None) -> str:
    """Return how much of something is used, in words; None is what cannot be measured."""
    if percent is None:
        return f"{what} cannot be measured"
    return f"{what} is at {percent:g} %"


def temperature_words(celsius: float, critical_celsius: float) -> str:
    return f"temperature is at {celsius:g} °C, and {critical_celsius:g} °C is critical"


def worst(statuses: Iterable[Status]) -> Status:
    return max(statuses, key=_BY_URGENCY.index, default="unknown")
