"""Facts that two programs have each for itself, since neither may import the other.

The agent is in the guest, the host tool and the doctor's probe are on the host, and the controller
is a release there: a fact that differed between two of them would be nobody's error alone.
"""

from __future__ import annotations

import pytest

from polydev import deployment_id, image_layout
from polydev.agent import identity as agent_identity
from polydev.agent.settings import AgentSettings
from polydev.client import credentials_key, host_probe
from polydev.client import template_build as client_templates
from polydev.controller import sealing
from polydev.controller import settings as controller_settings
from polydev.controller.host import deployments, network_watch
from polydev.controller.machines import bridge, systemd_hypervisor, template_maker
from polydev.deployment_records import order
from polydev.deploys import controller, network
from polydev.hosttool import (
    controller_program,
    golden_link,
    images,
    network_state,
    polkit,
    sequence_numbers,
    slots,
    units,
)
from polydev.hosttool import paths as hosttool_paths
from polydev.vm import config, launch, qemu, template_holder

AGENT = AgentSettings()
PATHS = hosttool_paths.Paths()
BRIDGE = network.BRIDGE
GUEST_PORTS = (config.AGENT_PORT, config.VNC_PORT, config.NOVNC_PORT)


@pytest.mark.parametrize(
    ("one", "another"),
    [
        pytest.param(*values, id=name)
        for name, *values in (
            ("guest's address", slots.GUEST, config.GUEST_ADDRESS),
            ("guest's gateway", slots.GUEST_GATEWAY, config.GUEST_GATEWAY),
            ("gateway's MAC", slots.GATEWAY_HARDWARE_ADDRESS, config.GATEWAY_MAC),
            ("guest's ports", slots.GUEST_PORTS, GUEST_PORTS),
            ("agent's port", AGENT.listen_port, config.AGENT_PORT),
            ("VNC's port", AGENT.vnc_port, config.VNC_PORT),
            ("noVNC's port", AGENT.novnc_port, config.NOVNC_PORT),
            ("port of identity", agent_identity.PORT, f"/dev/virtio-ports/{config.IDENTITY_PORT}"),
            ("TAP", template_maker.TAP, slots.TAP),
            ("bridge", bridge.BRIDGE, BRIDGE),
            ("order of records", sequence_numbers.order(3, "a"), order(3, "a")),
            ("order without number", sequence_numbers.order(None, "a"), order(None, "a")),
            ("image's lock", images.IN_USE, image_layout.IN_USE),
            ("image's files", images.BOOT_FILES, image_layout.BOOT_FILES),
            ("image's record", "record.json", image_layout.RECORD),
            ("golden link, on a host", golden_link.GOLDEN_LINK, image_layout.GOLDEN_LINK),
            (
                "golden link, for the doctor",
                host_probe.GOLDEN,
                str(PATHS.images / image_layout.GOLDEN_LINK),
            ),
            ("image store", image_layout.STORE, images.STORE),
            ("image store, among paths", PATHS.images, images.STORE),
            ("image store, for the doctor", host_probe.STORE, str(images.STORE)),
            ("templates, for verbs", client_templates.FOLDER, str(template_holder.FOLDER)),
            ("service", host_probe.UNITS[0], units.MAIN),
            ("maker of templates", systemd_hypervisor.TEMPLATE_MAKER, units.TEMPLATE_MAKER),
            ("watch of the network", network_watch.WATCH_UNIT, units.WATCH),
            ("report of the watch", network_watch.FILE, network_state.REPORT),
            ("host's values", host_probe.HOST, str(slots.HOST_FILE)),
            ("configuration", host_probe.CONFIG, controller.CONFIG),
            ("configuration's folder", PATHS.controller_config / "config.yaml", controller.CONFIG),
            ("host tool", host_probe.TOOL, str(PATHS.tool)),
            ("records of deployments", deployments.FOLDER, PATHS.records),
            ("action of polkit", host_probe.START_UNIT, polkit.ACTION),
            ("QEMU", host_probe.QEMU, qemu.QEMU),
            ("QEMU's log", systemd_hypervisor.QEMU_LOG, launch.QEMU_LOG),
            (
                "variables",
                controller_settings.ENVIRONMENT_PREFIX,
                controller_program.VARIABLE_PREFIX,
            ),
            ("key of credentials", credentials_key.FILE, sealing.SECRET_NAME),
        )
    ],
)
def test_one_fact(one: object, another: object) -> None:
    assert str(one) == str(another)


def test_names_of_deployments_have_one_form() -> None:
    forms = (deployment_id.PATTERN, hosttool_paths.DEPLOYMENT_ID, deployments.DEPLOYMENT_ID)
    assert len({form.pattern for form in forms}) == 1
