"""The controller that a verb asks: by its address, by its host through SSH, or the lab's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from polydev.errors import ConfigError
from polydev.settings import Settings
from verbs.hosts import described_host
from verbs.places import HOST_HELP, JSON_HELP, LAB_INVENTORY, lab_name

if TYPE_CHECKING:
    from polydev.client.controller_api import ControllerApi
    from polydev.client.lab_access import LabAccess
    from polydev.lab import Lab

API_HELP = {
    "url": "address of the controller (default: POLYDEV_URL, or the lab's); SSL_CERT_FILE names a "
    "private authority's certificate",
    "token": "an operator's token (default: POLYDEV_TOKEN, or the lab's, which ./inv up makes)",
    "inventory": "inventory file: ask its host's controller, through SSH",
    "host": HOST_HELP,
    "json": JSON_HELP,
}


def controller_url(address: str) -> str:
    return f"http://{address}:4000"


@contextmanager
def connect(url: str, token: str, inventory: str = "", host: str = "") -> Iterator[ControllerApi]:
    """The API that is meant: as told, by the environment, or the lab's.

    With an inventory, its host's, through SSH as long as this lasts. A lab's own token goes to the
    lab only, never to an address that was given.
    """
    from polydev.client.controller_api import ControllerApi
    from polydev.client.ssh_tunnel import tunnel

    token = token or os.environ.get("POLYDEV_TOKEN", "")
    if not (inventory or host):
        url = url or os.environ.get("POLYDEV_URL", "")
        of_lab = not url
        if of_lab:
            url, stored = _lab_operator()
            token = token or stored
        other = "" if of_lab else " --inventory FILE"
        with ControllerApi(url, _required(token, url, other)) as api:
            yield api
        return
    if url:
        raise ConfigError(
            "--url names one controller, --inventory or --host another", "leave one of them out"
        )
    _, described = described_host(inventory or LAB_INVENTORY, host)
    if not token and described.name == f"lab-{lab_name()}":
        _, token = _lab_operator()
    token = _required(token, described.name)
    with (
        tunnel(described.target, described.controller) as url,
        ControllerApi(url, token, through_ssh=True) as api,
    ):
        yield api


def _required(token: str, where: str, other: str = "") -> str:
    if not token:
        raise ConfigError(
            f"no token for {where}",
            f"./inv token.create{other} --user USER --name NAME makes one, then POLYDEV_TOKEN or "
            "--token; ./inv up makes one for the lab",
        )
    return token


def _lab_operator() -> tuple[str, str]:
    """The lab's address, and the token of its operator or nothing."""
    from polydev.client.lab_access import stored_access
    from polydev.lab import find

    lab = find(lab_name(), Settings.from_environment())
    if lab is None:
        raise ConfigError(
            f"no lab {lab_name()} runs, and no other controller is named",
            "./inv up starts the lab; another controller is named by POLYDEV_URL or --url",
        )
    access = stored_access(lab.folder)
    return controller_url(lab.address), access.operator.token if access else ""


def lab_demo_user() -> str:
    """The id of the lab's demo user. Raises ConfigError where there is none yet."""
    from polydev.client.lab_access import stored_access
    from polydev.lab import find

    lab = find(lab_name(), Settings.from_environment())
    access = stored_access(lab.folder) if lab else None
    if access is None:
        raise ConfigError(f"lab {lab_name()} has no demo user", "./inv up makes one; or --user")
    return access.demo.user_id


def lab_access(lab: Lab) -> LabAccess:
    """The users of a deployed lab with tokens that count, made now if need be."""
    from polydev.client.controller_api import ControllerApi
    from polydev.client.host_controller import HostController
    from polydev.client.lab_access import ensure_access

    def is_valid(token: str) -> bool:
        with ControllerApi(controller_url(lab.address), token) as api:
            return api.takes_token()

    _, described = described_host(LAB_INVENTORY, f"lab-{lab.name}")
    return ensure_access(lab.folder, HostController(described.target).ask, is_valid)


def access_fields(lab: Lab, access: LabAccess) -> dict[str, str]:
    """What `where` and `up` say of a lab's demo user."""
    return {
        "url": controller_url(lab.address),
        "userId": access.demo.user_id,
        "token": access.demo.token,
    }


def page_fields(lab: Lab, access: LabAccess) -> dict[str, str]:
    """Where a lab's pages are: `page` is a link that signs its demo user in, once.

    Raises ControllerUnreachable and ControllerRefused.
    """
    from polydev.client.controller_api import ControllerApi
    from polydev.client.sign_in_links import DASHBOARD, START, sign_in_link

    with ControllerApi(controller_url(lab.address), access.demo.token) as api:
        return {"page": sign_in_link(api, START).url, "dashboard": f"{api.url}{DASHBOARD}"}
