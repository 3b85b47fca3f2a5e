"""The network of VMs as values, and how the kernel's state differs from the declared one. Pure.

A part (the bridge, the firewall, one slot) has subjects, such as an interface; a subject has
properties, and each property has lines of text. `bridge_facts` and `slot_facts` have what each part
should be, and what it is by the kernel's answers, which `network_state` reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BRIDGE_PART, FIREWALL_PART, KERNEL_PART = "bridge", "firewall", "kernel"
FORWARDING = "net.ipv4.ip_forward"
# Differences in these can only block traffic, not allow more of it.
ONLY_CLOSING = frozenset(
    {"state", "address", "mtu", "stp_state", "learning", "flood"}
    | {"mcast_flood", "bcast_flood", "guard", "root_block", "locked"}
)
MOST_SHOWN_LINES = 3
SETTINGS = "settings"
THERE, MISSING = ("there",), ("missing",)

Lines = tuple[str, ...]
Facts = Mapping[str, Mapping[str, Lines]]
Json = dict[str, Any]


@dataclass(frozen=True)
class KernelState:
    """The kernel's state of one network namespace; `stations` are its bridge's fdb entries."""

    links: list[Json]
    routes: list[Json]
    policy: list[Json]
    policy6: list[Json]
    neighbours: list[Json]
    settings: dict[str, str]
    rules: Lines
    stations: list[Json]


@dataclass(frozen=True)
class Difference:
    """One property that is not as declared; `opens` if it may allow traffic that is blocked."""

    part: str
    what: str
    found: Lines
    declared: Lines
    opens: bool

    @property
    def unexpected(self) -> list[str]:
        return self._lines("-")

    @property
    def missing(self) -> list[str]:
        return self._lines("+")

    def _lines(self, sign: str) -> list[str]:
        """Return lines that only one side has, without blank lines and brackets."""
        lines = [
            each[2:].strip() for each in difflib.ndiff(self.found, self.declared) if each[0] == sign
        ]
        return [each for each in lines if each not in ("", "}")]

    @property
    def text(self) -> str:
        if len(self.found) == len(self.declared) == 1:
            return f"{self.part}: {self.what}: {self.found[0]} instead of {self.declared[0]}"
        sides = (("unexpected", self.unexpected), ("missing", self.missing))
        said = [f"{side}: {_short(lines)}" for side, lines in sides if lines]
        return f"{self.part}: {self.what}: {'; '.join(said)}"

    @property
    def diff(self) -> list[str]:
        """Return lines with `-` for what was found and `+` for what is declared."""
        return [
            *(f"- {self.part}: {self.what}: {line}" for line in self.unexpected),
            *(f"+ {self.part}: {self.what}: {line}" for line in self.missing),
        ]

    def as_dict(self) -> dict[str, object]:
        return {
            "part": self.part,
            "what": self.what,
            "opens": self.opens,
            "text": self.text,
            "diff": self.diff,
        }


def _short(lines: Sequence[str]) -> str:
    rest = len(lines) - MOST_SHOWN_LINES
    return ", ".join(lines[:MOST_SHOWN_LINES]) + (f" and {rest} more" if rest > 0 else "")


def differences(part: str, declared: Facts, live: Facts) -> list[Difference]:
    """Return the differences of the kernel's state from the declared one, and undeclared things."""
    found = []
    for subject, properties in declared.items():
        if subject not in live:
            found.append(Difference(part, subject, MISSING, THERE, opens=False))
            continue
        for name, lines in properties.items():
            now = live[subject].get(name, ())
            # A setting can be missing only with its interface, or on a kernel without IPv6.
            if now != lines and (now or subject != SETTINGS):
                what = f"{subject} {name}"
                found.append(Difference(part, what, now, lines, _opens(name, now, lines)))
    beyond = [subject for subject in live if subject not in declared]
    return found + [Difference(part, each, THERE, MISSING, opens=True) for each in beyond]


def _opens(name: str, found: Lines, declared: Lines) -> bool:
    if name == "rules":
        return True
    only_closes = name in ONLY_CLOSING or name == FORWARDING or name.endswith(".forwarding")
    return not only_closes and not set(found) <= set(declared)
