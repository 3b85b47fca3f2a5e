"""A real host. Copy this to inventory/production.py, which git does not keep, and adapt it.

Keys come from the SSH agent or ~/.ssh/config. The user needs sudo without a password; root
does not log in, and after the first deployment nobody does by password. What is not said here
has a default; docs/hosts.md has them all. Paths that are not absolute begin in the checkout.
"""

from __future__ import annotations

browser_hosts = [
    (
        "browsers-1.example.com",
        {
            "ssh_user": "deploy",
            "ssh_known_hosts_file": "~/.ssh/known_hosts",
            # How many VMs there is room for, and what each of them gets. Without KVM each also
            # takes up to vm_translation_cache_mib (1024) for code that QEMU translated.
            "slots": 16,
            "vm_cpus": 2,
            "vm_memory_mib": 2048,
            # Whom the VMs ask for names. The image asks these two by itself; if others are named,
            # its questions are translated to the first of them, which may be private.
            "resolvers": ["8.8.8.8", "8.8.4.4"],
            # Whom the host's own cache of names asks, and the host's address among its VMs.
            # "upstream_resolvers": ["8.8.8.8", "8.8.4.4"],
            # "bridge_address": "192.168.100.1/24",
            # Private networks that VMs may reach all the same; none unless named.
            "reachable": [],
            # A proxy that speaks TLS sits in front, so the controller listens here only, as it does
            # without this: tokens are not for everybody to read.
            "controller_listen": "127.0.0.1:4000",
            "controller": {
                "log_level": "info",
                "drain_seconds": 20,
                # Believed about who asks, so that failed logins count for the right address.
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
            #     "webhook-secrets": "secrets/webhook-secrets",  # what webhooks are signed with
            #     # With both, the controller itself serves HTTPS: "TLS" in docs/controller.md.
            #     "tls-certificate": "secrets/fullchain.pem", "tls-key": "secrets/privkey.pem",
            #     # What users' credentials are sealed with; ./inv credentials.key makes one. Keep
            #     # it elsewhere too: without it nobody opens them. Without this none are kept.
            #     "credentials-key": "secrets/credentials-key",
            # },
            # Programs of a Firecracker release, checked before they are sent. Nothing runs them
            # yet.
            # "firecracker": {
            #     "file": "vendor/firecracker", "sha256": "…",
            #     "jailer_file": "vendor/jailer", "jailer_sha256": "…",
            # },
            # An image other than the golden one of the operator's machine.
            # "image": "<64 hexadecimal digits>",
            "journal_max_mib": 2048,
            # How long the host waits for the operator to come back after a change of network,
            # firewall or SSH, before it takes the change back.
            "deadman_seconds": 90,
        },
    ),
]
