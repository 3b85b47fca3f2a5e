"""Tests that nothing is written twice: copies of a fact agree, and a class name is used once.

Some programs cannot import each other: the agent is in the guest, the host tool and the doctor's
probe are on the host, and the controller is a release there. If two of them need a fact, each
has a copy, and these tests compare the copies.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import polydev
from polydev import host_layout, image_layout
from polydev.agent import identity as agent_identity
from polydev.agent.settings import AgentSettings
from polydev.client import credentials_key, host_probe
from polydev.client import template_build as client_templates
from polydev.controller import credential_encryption
from polydev.controller import settings as controller_settings
from polydev.controller.host import network_watch_report
from polydev.controller.machines import (
    agent_client,
    bridge_status,
    systemd_hypervisor,
    template_maker,
)
from polydev.controller.machines.vm_driver_timing import Intervals
from polydev.deployment_records import order
from polydev.host_setup import host_files_and_units
from polydev.hosttool import (
    deployment_counter,
    network_watch,
    polkit,
    run_controller_command,
    slot_network,
    units,
)
from polydev.hosttool import paths as hosttool_paths
from polydev.vm import config, launch, qemu_command_line, template, template_client, template_holder

AGENT = AgentSettings()
PATHS = hosttool_paths.Paths()
BRIDGE = host_files_and_units.BRIDGE


@pytest.mark.parametrize(
    ("one", "another"),
    [
        pytest.param(*values, id=name)
        for name, *values in (
            ("agent's port", AGENT.listen_port, host_layout.AGENT_PORT),
            ("VNC's port", AGENT.vnc_port, host_layout.VNC_PORT),
            ("noVNC's port", AGENT.novnc_port, host_layout.NOVNC_PORT),
            ("port of identity", agent_identity.PORT, f"/dev/virtio-ports/{config.IDENTITY_PORT}"),
            ("TAP", template_maker.TAP, slot_network.TAP),
            ("bridge", bridge_status.BRIDGE, BRIDGE),
            ("order of records", deployment_counter.order(3, "a"), order(3, "a")),
            ("order without number", deployment_counter.order(None, "a"), order(None, "a")),
            (
                "golden link, for the doctor",
                host_probe.GOLDEN,
                str(PATHS.images / image_layout.GOLDEN_LINK),
            ),
            ("image store, for the doctor", host_probe.STORE, image_layout.STORE),
            ("templates, for verbs", client_templates.FOLDER, str(template_holder.FOLDER)),
            ("service", host_probe.UNITS[0], units.MAIN),
            ("maker of templates", systemd_hypervisor.TEMPLATE_MAKER, units.TEMPLATE_MAKER),
            ("watch of the network", network_watch_report.WATCH_UNIT, units.WATCH),
            ("report of the watch", network_watch_report.FILE, network_watch.REPORT),
            ("host's values", host_probe.HOST, str(slot_network.HOST_FILE)),
            ("configuration", host_probe.CONFIG, host_files_and_units.CONFIG_FILE),
            ("host tool", host_probe.TOOL, str(PATHS.tool)),
            ("action of polkit", host_probe.START_UNIT, polkit.ACTION),
            ("QEMU", host_probe.QEMU, qemu_command_line.QEMU),
            ("QEMU's log", systemd_hypervisor.QEMU_LOG, launch.QEMU_LOG),
            (
                "variables",
                controller_settings.ENVIRONMENT_PREFIX,
                run_controller_command.VARIABLE_PREFIX,
            ),
            ("key of credentials", credentials_key.FILE, credential_encryption.SECRET_NAME),
        )
    ],
)
def test_copies_of_a_fact_agree(one: object, another: object) -> None:
    assert str(one) == str(another)


def test_limits_of_a_clones_start_fit_into_each_other() -> None:
    """A clone that fails to start says why before systemd and the driver give it up."""
    unit = (SOURCES.parents[1] / "templates/etc/systemd/system/microvm@.service.j2").read_text()
    found = re.search("^TimeoutStartSec=([0-9]+)$", unit, re.MULTILINE)
    assert found is not None
    own = template_client.ANSWER_SECONDS + template.LOAD_SECONDS
    assert own < float(found[1]) < Intervals().start_limit


def test_agent_gives_up_before_the_controller_does() -> None:
    """The agent's answer says what took too long."""
    starting = AGENT.login_start_timeout_seconds + AGENT.login_url_wait_seconds
    assert starting < agent_client.START_SECONDS
    assert AGENT.credentials_timeout_seconds < agent_client.CREDENTIALS_SECONDS
    injecting = AGENT.login_start_timeout_seconds + AGENT.login_status_timeout_seconds
    assert injecting < agent_client.INJECT_SECONDS


SOURCES = Path(polydev.__file__).parent
LAYOUTS = (host_layout, image_layout)
# These are installed without the others and have copies, which are compared above.
ALONE = {SOURCES / "agent", SOURCES / "client" / "host_probe.py"}
ONCE = (
    host_layout.DEPLOYMENT_ID.pattern,
    host_layout.GUEST_GATEWAY,
    host_layout.GATEWAY_MAC,
    host_layout.CONTROLLER_DATABASE.name,
    image_layout.GOLDEN_LINK,
    image_layout.IN_USE,
    *(str(each) for module in LAYOUTS for each in vars(module).values() if isinstance(each, Path)),
)


def constants() -> Iterator[tuple[str, object]]:
    """Yield every constant of the sources, with its place."""
    apart = ALONE | {Path(str(module.__file__)) for module in LAYOUTS}
    for file in SOURCES.rglob("*.py"):
        if apart.isdisjoint({file, *file.parents}):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant):
                    yield f"{file.relative_to(SOURCES)}:{node.lineno}", node.value


def test_shared_names_are_written_only_in_the_layout_modules() -> None:
    """Names, paths and ports of a host and of an image store; sentences may contain them."""
    found = []
    for place, value in constants():
        is_name = isinstance(value, str) and not re.search(r"\s", value)
        if is_name and any(each in str(value) for each in ONCE):
            found.append(f"{place}: {value}")
        if type(value) is int and value in host_layout.GUEST_PORTS:
            found.append(f"{place}: {value}")
    assert found == []


def test_each_class_name_is_used_once() -> None:
    """A search for a class finds one class; nested classes count as well."""
    places: dict[str, list[str]] = {}
    for file in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                place = f"{file.relative_to(SOURCES)}:{node.lineno}"
                places.setdefault(node.name, []).append(place)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
