"""Connect a verb to a controller: by its address, through SSH to its host, or the lab's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from polydev.errors import ConfigError
from polydev.settings import Settings
from verbs.deploy import described_host
from verbs.paths_and_help import HOST_HELP, JSON_HELP, LAB_INVENTORY, lab_name

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
LOST_HINT = "see ./inv sessions --all, ./inv vms --all"


def session_id_of(api: ControllerApi, session: str) -> str:
    """Return the id of a session, given it or the start of it. Raises ConfigError."""
    from polydev.client.controller_api import one_with_prefix

    ids = [each["id"] for each in api.sessions(all_of_them=True)]
    return one_with_prefix(ids, session, "session", LOST_HINT)


def vm_id_of(api: ControllerApi, vm: str, *, all_of_them: bool) -> str:
    """Return the id of a VM, given it or the start of it. Raises ConfigError."""
    from polydev.client.controller_api import one_with_prefix

    ids = [each["vmId"] for each in api.vms(all_of_them=all_of_them)]
    return one_with_prefix(ids, vm, "VM", LOST_HINT)


def controller_url(address: str) -> str:
    return f"http://{address}:4000"


@contextmanager
def connect(url: str, token: str, inventory: str = "", host: str = "") -> Iterator[ControllerApi]:
    """Connect to the controller that options or the environment name, or else to the lab's.

    With an inventory or a host the connection goes through SSH. The lab's stored token is sent to
    the lab only, never to another address.
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
            f"make one: ./inv token.create{other} --user USER --name NAME; then give it as "
            "POLYDEV_TOKEN or --token; ./inv up makes one for the lab",
        )
    return token


def _lab_operator() -> tuple[str, str]:
    """Return the URL of the lab's controller and its operator's token, or "" if there is none."""
    from polydev.client.lab_access import stored_access
    from polydev.lab import find

    lab = find(lab_name(), Settings.from_environment())
    if lab is None:
        raise ConfigError(
            f"lab {lab_name()} does not run, and no other controller is named",
            "start the lab: ./inv up; or name a controller: POLYDEV_URL or --url",
        )
    access = stored_access(lab.folder)
    return controller_url(lab.address), access.operator.token if access else ""


def lab_demo_user() -> str:
    """Return the id of the lab's demo user. Raises ConfigError if there is none yet."""
    from polydev.client.lab_access import stored_access
    from polydev.lab import find

    lab = find(lab_name(), Settings.from_environment())
    access = stored_access(lab.folder) if lab else None
    if access is None:
        raise ConfigError(
            f"lab {lab_name()} has no demo user", "./inv up makes one; or name a user with --user"
        )
    return access.demo.user_id


def lab_access(lab: Lab) -> LabAccess:
    """Return the users of a deployed lab with valid tokens; make what is missing."""
    from polydev.client.controller_api import ControllerApi
    from polydev.client.controller_cli import HostController
    from polydev.client.lab_access import ensure_access

    def is_valid(token: str) -> bool:
        with ControllerApi(controller_url(lab.address), token) as api:
            return api.takes_token()

    _, described = described_host(LAB_INVENTORY, f"lab-{lab.name}")
    return ensure_access(lab.folder, HostController(described.target).ask, is_valid)


def access_fields(lab: Lab, access: LabAccess) -> dict[str, str]:
    """Return the fields of a lab's demo user in the answers of `where` and `up`."""
    return {
        "url": controller_url(lab.address),
        "userId": access.demo.user_id,
        "token": access.demo.token,
    }


def page_fields(lab: Lab, access: LabAccess) -> dict[str, str]:
    """Return the URLs of a lab's pages; `page` is a link that signs its demo user in, once.

    Raises ControllerUnreachable and ControllerRefused.
    """
    from polydev.client.controller_api import ControllerApi
    from polydev.client.open_in_browser import DASHBOARD, START, sign_in_link

    with ControllerApi(controller_url(lab.address), access.demo.token) as api:
        return {"page": sign_in_link(api, START).url, "dashboard": f"{api.url}{DASHBOARD}"}
