"""The base of all sections of the settings, and the kinds of values that they share."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from polydev.validation import no_flag

# Ten years and a century: later points in time have no date.
MOST_SECONDS = 10 * 366 * 24 * 3600
MOST_DAYS = 36525
# Anything shorter is done without a pause.
LEAST_SECONDS = 0.001
Seconds = Annotated[float, Field(ge=LEAST_SECONDS, le=MOST_SECONDS)]


def _network(value: Any) -> Any:
    """Read a network of either version: errors of pydantic's union would name its branches."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text, in quotes")
    try:
        return ip_network(value)
    except ValueError:
        raise ValueError(
            "must be a network without bits of a host, as in 192.0.2.0/24 or 2001:db8::/64"
        ) from None


Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    _check_flags = field_validator("*", mode="before")(no_flag)  # no section has flags
