"""The host tool's report on a host before a deployment, read by one call."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from typing import Any

from pyinfra.context import host

from polydev.host_setup.facts import JsonFact
from polydev.host_setup.pyinfra_types import warn
from polydev.hosttool.network_facts import BRIDGE_PART, FIREWALL_PART, KERNEL_PART

NetworkDifferences = dict[str, list[str]]


@dataclass(frozen=True)
class HostReport:
    """Answers for each part, as the host tool's verb `look` gives them; empty for a new host.

    Lines start with `-` for what is there and `+` for what is declared.
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
        """Parts of the network that differ; firewall and sysctls have facts of their own."""
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
        """Files of others that change our units."""
        found = self.said.get("overrides", [])
        return [str(each) for each in found] if isinstance(found, list) else []

    @property
    def permissions(self) -> list[str]:
        """Paths that somebody may use who must not."""
        return self._lines("permissions")

    @property
    def reserve(self) -> list[str]:
        return self._lines("reserve")

    @property
    def watch(self) -> list[str]:
        return self._lines("watch")

    @property
    def settings(self) -> list[str] | None:
        """Settings of others that override ours; None if the host tool cannot say."""
        return self._lines("settings") if "settings" in self.said else None

    @property
    def accounts(self) -> list[str] | None:
        """Differences of users; None if the host tool cannot say: then all are created."""
        return self._lines("accounts") if "accounts" in self.said else None

    @property
    def damage(self) -> list[str]:
        """Differences between the files of the release in use and those installed."""
        return [str(line) for line in self._document("release").get("damage", [])]

    @property
    def socket(self) -> dict[str, Any]:
        """Whether systemd lost the controller's socket, and who else uses its address."""
        return self._document("socket")

    @property
    def images(self) -> dict[str, Any]:
        """The host's store: `images` (digests) and `golden` (a digest or null)."""
        return self._document("images")

    @property
    def database(self) -> dict[str, Any]:
        """`database`: the configured one, in words; `differences`: lines about its schema."""
        return self._document("database")


class HostReportFact(JsonFact):
    def command(self, tool: str, question: str) -> str:
        asked = f"printf %s {shlex.quote(question)} | {tool} look 2>/dev/null"
        return f"test ! -x {tool} || {asked} || true"


def read_host_report(
    tool: str, parts: list[str], declared: str, address: str, port: int
) -> HostReport:
    """Ask for these parts. `declared` is the text of the future host.json."""
    question = {
        "parts": parts,
        "host": json.loads(declared),
        "socket": {"address": address, "port": port},
    }
    said = host.get_fact(HostReportFact, tool=tool, question=json.dumps(question))
    if "error" in said:
        warn(
            f"{host.name}: its host tool is of another release and cannot report on the host: "
            "this plan may list too much or too little"
        )
        return HostReport()
    return HostReport(said)
