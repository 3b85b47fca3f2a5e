"""Make the provider reachable from VMs of a lab, by an address of the internet.

    VM -- br-vm -- [lab] provider 1.2.3.1 -- 1.2.3.2 eth0 [Node]

The provider runs on this machine, in a network namespace of its own. That ends with it, and so
does the lab's link to it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydev.lab import Lab
from polydev.lab.container import init_pid
from polydev.processes import LineProcess, run
from tests.oidc.provider import START_SECONDS, issuer_of, provider_argv

# As providers/testtool.yaml has it.
HOST, PORT = "1.2.3.2", 9000
GATEWAY = "1.2.3.1"
# Waits for its link before it becomes the provider.
START = 'echo $$; read -r _; exec "$@"'
LINK = f"""
ip link add provider type veth peer name eth0 netns $1
ip address add {GATEWAY}/30 dev provider
ip link set provider up
nsenter --target $1 --net ip link set lo up
nsenter --target $1 --net ip address add {HOST}/30 dev eth0
nsenter --target $1 --net ip link set eth0 up
"""
ASK = """
import sys, urllib.request
url, token = sys.stdin.read().split()
request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


@dataclass(frozen=True)
class ProviderBeyondLab:
    issuer: str
    pid: int

    def userinfo(self, access_token: str) -> dict[str, Any]:
        """Return the provider's answer about the user of this token."""
        argv = ["nsenter", "--target", str(self.pid), "--net", sys.executable, "-c", ASK]
        found: dict[str, Any] = json.loads(
            run(argv, input=f"{self.issuer}/me {access_token}").stdout
        )
        return found


@contextmanager
def provider_beyond(lab: Lab, packages: Path, folder: Path) -> Iterator[ProviderBeyondLab]:
    """Run a provider that VMs of the lab reach, for the block."""
    argv = provider_argv(packages, folder, host=HOST, port=PORT)
    process = LineProcess(["unshare", "--net", "sh", "-c", START, "provider", *argv])
    try:
        pid = int(process.first_line(START_SECONDS))
        in_lab = ["nsenter", "--target", str(init_pid(lab)), "--net"]
        run([*in_lab, "sh", "-euc", LINK, "link", str(pid)])
        try:
            process.send("")
            yield ProviderBeyondLab(issuer_of(process), pid)
        finally:
            # Its namespace takes the link along too, but not at once.
            run([*in_lab, "ip", "link", "delete", "provider"])
    finally:
        process.end()
