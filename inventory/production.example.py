"""Example of a real host. Copy it to inventory/production.py, which git ignores, and adapt it.

Keys come from the SSH agent or ~/.ssh/config. The user needs sudo without a password. The first
deployment forbids logins of root and by password. docs/hosts.md has all values with their defaults.
Relative paths start in the checkout.
"""

from __future__ import annotations

browser_hosts = [
    (
        "browsers-1.example.com",
        {
            "ssh_user": "deploy",
            "ssh_known_hosts_file": "~/.ssh/known_hosts",
            # The number of VMs, and the CPUs and memory of each. Without KVM each VM also
            # takes up to vm_translation_cache_mib (1024) for code that QEMU translated.
            "slots": 16,
            "vm_cpus": 2,
            "vm_memory_mib": 2048,
            # DNS servers of the VMs. These two are those of the image; if others are named, the
            # host redirects the VMs' queries to the first of them, which may be private.
            "resolvers": ["8.8.8.8", "8.8.4.4"],
            # DNS servers of the host's own cache, and the host's address on the VMs' bridge.
            # "upstream_resolvers": ["8.8.8.8", "8.8.4.4"],
            # "bridge_address": "192.168.100.1/24",
            # Private networks that VMs may reach; by default none.
            "reachable": [],
            # The default. A TLS proxy on the host is in front of the controller: tokens must not
            # cross a network in plain text.
            "controller_listen": "127.0.0.1:4000",
            "controller": {
                "log_level": "info",
                "drain_seconds": 20,
                # Proxies that are trusted to name the client, for the count of failed logins.
                "trusted_proxies": ["127.0.0.1/32"],
                # Receivers of signed requests about sessions: docs/webhooks.md.
                # "webhooks": {
                #     "endpoints": [{"name": "front-end", "url": "https://front.example.com/hook"}],
                # },
            },
            # Files on the operator's machine; the controller gets them as systemd credentials.
            # "secrets": {
            #     "jwt-secret": "secrets/jwt-secret",  # signs users' JWTs; 32 bytes or more
            #     "alert-urls": "secrets/alert-urls",  # where alerts go, by Apprise's URLs
            #     "database-url": "secrets/database-url",  # PostgreSQL instead of SQLite
            #     "webhook-secrets": "secrets/webhook-secrets",  # keys that sign webhooks
            #     # With both, the controller itself serves HTTPS: "TLS" in docs/controller.md.
            #     "tls-certificate": "secrets/fullchain.pem", "tls-key": "secrets/privkey.pem",
            #     # Encrypts users' credentials; ./inv credentials.key makes one. Keep a copy of it
            #     # elsewhere: nobody can open them without it. Without this key none are stored.
            #     "credentials-key": "secrets/credentials-key",
            # },
            # Programs of a Firecracker release, verified before they are sent. Nothing uses them
            # yet.
            # "firecracker": {
            #     "file": "vendor/firecracker", "sha256": "…",
            #     "jailer_file": "vendor/jailer", "jailer_sha256": "…",
            # },
            # An image other than the golden one of the operator's machine.
            # "image": "<64 hexadecimal digits>",
            "journal_max_mib": 2048,
            # How long the host waits for the operator to connect again after a change of network,
            # firewall or SSH, before it undoes the change.
            "deadman_seconds": 90,
        },
    ),
]
