"""The host tool's account of a host before a deployment: one call answers all questions."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from typing import Any

from pyinfra.context import host

from polydev.deploys.facts import JsonFact
from polydev.deploys.pyinfra_types import warn
from polydev.hosttool.network_facts import BRIDGE_PART, FIREWALL_PART, KERNEL_PART

NetworkDifferences = dict[str, list[str]]


@dataclass(frozen=True)
class HostReport:
    """Answers by their part, as `polydev.hosttool.look` gives them; empty for a new host.

    Lines have `-` for what is there and `+` for what is declared.
    """

    said: dict[str, Any] = field(default_factory=dict)

    def _lines(self, part: str) -> list[str]:
        found = self.said.get(part, [])
        return [f"- {part}: {found['message']}"] if "error" in found else [str(e) for e in found]

    def _document(self, part: str) -> dict[str, Any]:
        found: dict[str, Any] = self.said.get(part) or {}
        return {} if "error" in found else found

    @property
    def network(self) -> NetworkDifferences:
        """Each part of the network that is not as declared; firewall and kernel have own facts."""
        said = self.said.get("network") or {}
        if "error" in said:
            return {BRIDGE_PART: [f"- {said['message']}"]}
        found: NetworkDifferences = {}
        for each in said.get("differences", []):
            if each["part"] not in (FIREWALL_PART, KERNEL_PART):
                found.setdefault(each["part"], []).extend(each["diff"])
        return found

    @property
    def sshd(self) -> list[str]:
        return self._lines("sshd")

    @property
    def polkit(self) -> list[str]:
        return self._lines("polkit")

    @property
    def overrides(self) -> list[str]:
        """Files of others that change units of ours."""
        found = self.said.get("overrides", [])
        return [str(each) for each in found] if isinstance(found, list) else []

    @property
    def permissions(self) -> list[str]:
        """Paths with rights for somebody who must not have them."""
        return self._lines("permissions")

    @property
    def reserve(self) -> list[str]:
        return self._lines("reserve")

    @property
    def watch(self) -> list[str]:
        return self._lines("watch")

    @property
    def settings(self) -> list[str] | None:
        """What undoes files of ours; None where nobody can say so."""
        return self._lines("settings") if "settings" in self.said else None

    @property
    def accounts(self) -> list[str] | None:
        """None where nobody can say so: all of them are to be made."""
        return self._lines("accounts") if "accounts" in self.said else None

    @property
    def damage(self) -> list[str]:
        """Differences of the release in use from what was installed."""
        return [str(line) for line in self._document("release").get("damage", [])]

    @property
    def socket(self) -> dict[str, Any]:
        """Whether the controller's socket was lost, and what is in its way at its address."""
        return self._document("socket")

    @property
    def images(self) -> dict[str, Any]:
        """`images` (digests) and `golden` (a digest or null) of the host's store."""
        return self._document("images")

    @property
    def database(self) -> dict[str, Any]:
        """`database`: which one the host's files name, in words; `differences`: lines."""
        return self._document("database")


class HostReportFact(JsonFact):
    def command(self, tool: str, question: str) -> str:
        asked = f"printf %s {shlex.quote(question)} | {tool} look 2>/dev/null"
        return f"test ! -x {tool} || {asked} || true"


def read_host_report(
    tool: str, parts: list[str], declared: str, address: str, port: int
) -> HostReport:
    """Ask for these parts. `declared` is the text of the host.json that the host is to have."""
    question = {
        "parts": parts,
        "host": json.loads(declared),
        "socket": {"address": address, "port": port},
    }
    said = host.get_fact(HostReportFact, tool=tool, question=json.dumps(question))
    if "error" in said:
        warn(
            f"{host.name}: its host tool is of another release, which cannot say how the host is: "
            "this plan may name too much or too little"
        )
        return HostReport()
    return HostReport(said)
