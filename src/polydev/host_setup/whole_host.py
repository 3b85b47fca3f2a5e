"""The deploy of a whole host: every concern, in order."""

from __future__ import annotations

import json
from functools import partial

from polydev.deployment_id import new_deployment_id
from polydev.host_setup.accounts import accounts, host_json
from polydev.host_setup.controller import check_controller, controller
from polydev.host_setup.deadman import arm_deadman, confirm_deadman
from polydev.host_setup.facts_over_one_shell import BackgroundTask, read_facts_through_one_shell
from polydev.host_setup.firecracker import hypervisor
from polydev.host_setup.host_files_and_units import TOOL, backup_scope, unit_order
from polydev.host_setup.host_report import read_host_report
from polydev.host_setup.host_tool import host_tool
from polydev.host_setup.images import images
from polydev.host_setup.inventory_values import HostData, check_host_data
from polydev.host_setup.network import (
    bridge,
    firewall,
    names,
    network_watch_unit,
    require_free_networks,
    slots,
    warn_of_open_api,
)
from polydev.host_setup.packages import packages
from polydev.host_setup.pyinfra_types import host_values
from polydev.host_setup.ssh_connection import tune_connection
from polydev.host_setup.sysctl import kernel, overriding_settings
from polydev.host_setup.system_services import journal, ssh
from polydev.host_setup.units import unit_overrides
from polydev.host_setup.vm_units import accelerator, templates, vms
from polydev.ssh import SshTarget

# Parts of the host tool's report that only a deployment of everything needs.
OF_ALL = ("accounts", "network", "permissions", "polkit", "reserve", "settings", "sshd", "watch")


def browser_host() -> None:
    """Deploy the host of pyinfra's context as its inventory declares it."""
    name, values = host_values()
    site = check_host_data(values, name)
    target = SshTarget.from_data(name, values)
    tune_connection()
    checking = BackgroundTask(partial(_check_controller, site, name))
    read_facts_through_one_shell()
    declared = host_json(site, unit_order(site))
    live = read_host_report(TOOL, parts(site), declared, str(site.listen.address), site.listen.port)
    checking.result()
    if site.concerns():
        require_free_networks(site)
    if site.concerns("master-controller"):
        warn_of_open_api(site)
    deployment_id = site.deployment_id or new_deployment_id()
    host_tool(live.reserve)
    if site.concerns("master-controller"):
        of_all = site.concerns()
        unit_overrides([each for each in live.overrides if of_all or "master-controller" in each])
    if site.concerns():
        packages(target)
        accounts(site, declared, live.accounts, live.permissions)
        kernel()
        journal(site)
        overriding_settings(live.settings, declared)
        hypervisor(site)
    if site.concerns("vm-agent"):
        images(site, target, live.images)
    if site.concerns():
        arm_deadman(site, live.network, live.sshd, json.dumps(backup_scope(site)), deployment_id)
        ssh(live.sshd)
        bridge(site, live.network)
        firewall(site)
        slots(site, live.network)
        names(site)
        network_watch_unit(site, live.watch)
        confirm_deadman(site, target)
        vms(site, live.polkit)
    if site.concerns("master-controller"):
        controller(site, target, deployment_id, live)
    if site.concerns():
        accelerator(site)
    if site.concerns("master-controller"):
        templates(site)


def _check_controller(site: HostData, name: str) -> None:
    if site.concerns("master-controller"):
        check_controller(site, name)


def parts(site: HostData) -> list[str]:
    """Return the parts of the host tool's report that a deployment of this target needs."""
    asked = list(OF_ALL) if site.concerns() else []
    asked += ["images"] if site.concerns("vm-agent") else []
    if site.concerns("master-controller"):
        asked += ["database", "overrides", "release", "socket"]
    return asked
