"""A real host. Copy this to inventory/production.py, which git does not keep, and adapt it.

Keys come from the SSH agent or ~/.ssh/config. The user needs sudo without a password; root
does not log in.
"""

from __future__ import annotations

browser_hosts = [
    (
        "browsers-1.example.com",
        {
            "ssh_user": "deploy",
            "ssh_known_hosts_file": "~/.ssh/known_hosts",
            # How many VMs at once: about 2 GiB of memory and one core for each.
            "slots": 16,
            # Whom the VMs ask for names. Private ones are let through the firewall on port 53.
            "resolvers": ["8.8.8.8", "8.8.4.4"],
            # Private networks that VMs may reach all the same; none unless named.
            "reachable": [],
            # A proxy that speaks TLS sits in front, so the controller listens here only.
            "controller_listen": "127.0.0.1:4000",
            "controller": {"log_level": "info", "drain_seconds": 20},
            # Files on the operator's machine; the controller gets them as systemd credentials.
            # "secrets": {"jwt-secret": "secrets/jwt-secret"},
            # Programs of a Firecracker release, checked before they are sent.
            # "firecracker": {
            #     "file": "vendor/firecracker", "sha256": "…",
            #     "jailer_file": "vendor/jailer", "jailer_sha256": "…",
            # },
            # An image other than the golden one of the operator's machine.
            # "image": "<64 hexadecimal digits>",
            "journal_max_mib": 2048,
            # How long the host waits for the operator to come back after a network change.
            "deadman_seconds": 90,
        },
    ),
]
