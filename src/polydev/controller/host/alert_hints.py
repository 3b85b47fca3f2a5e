"""Hints for operators: the next step for each alert and finding of the host."""

from __future__ import annotations

from collections.abc import Mapping

from polydev.controller.host.network_watch_report import REPAIR_HINT

NO_HINT = "see the controller's log: journalctl -u master-controller"
# By the name of a part, which is an alert's rule where there is one.
HINTS: Mapping[str, str] = {
    "cpu": "see which processes use most CPU; end sessions that nobody needs",
    "memory": "see which processes use most memory; end sessions that nobody needs, or reduce "
    "pool.size",
    "disk": "on the host, du -xhd1 MOUNT shows what is large; ./inv golden.prune removes images "
    "that nothing needs",
    "network": "on the host, run ip link and networkctl status",
    "temperature": "check the host's fans and cooling; fewer VMs make less heat",
    "database": "run ./inv doctor for details; see Database in docs/controller.md",
    "image_store": "build an image with ./inv golden.build, then run ./inv deploy",
    "no_slots": "end sessions that nobody needs, or declare more slots in the inventory",
    "failed_boots": "each failed session shows the reason; ./inv golden.verify tests the image",
    "not_resumed": "./inv template.build makes the template and says why it fails",
    "template_missing": "./inv template.build makes the template and says why it fails",
    "unhealthy_vms": "end the sessions of these VMs: a new session gets a new VM",
    "vm_isolation": REPAIR_HINT,
    "vm_network": REPAIR_HINT,
    "certificate": "renew the files of tls-certificate and tls-key, then ./inv deploy",
    "deploy_failed": "./inv deployments shows why; deploy again, or run ./inv rollback",
    "webhooks": "./inv webhooks shows why; ./inv webhook.try sends a test message",
    "pool": "sessions still start, but more slowly, until the pool has VMs again",
}
