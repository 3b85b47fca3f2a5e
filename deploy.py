"""The deployment that pyinfra runs: pyinfra inventory/lab.py deploy.py"""

from __future__ import annotations

from pyinfra.context import config, host

from polydev.host_setup.whole_host import browser_host

config.SUDO = True

if "browser_hosts" in host.groups:
    browser_host()
