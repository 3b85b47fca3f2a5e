"""Values of every host, unless its own inventory has others."""

from __future__ import annotations

slots = 8
resolvers = ["8.8.8.8", "8.8.4.4"]
upstream_resolvers = ["8.8.8.8", "8.8.4.4"]
ssh_strict_host_key_checking = "yes"
