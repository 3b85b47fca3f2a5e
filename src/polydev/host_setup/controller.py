"""The controller's release, its configuration and the handover to it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pyinfra import logger
from pyinfra.api.command import StringCommand
from pyinfra.context import host

from polydev.errors import DeployError
from polydev.host_layout import CONTROLLER_DATABASE
from polydev.host_setup.accounts import CONTROLLER_USER, VM_ROOT
from polydev.host_setup.config_check import check_controller_config
from polydev.host_setup.controller_wheels import make_bundle, source_digest
from polydev.host_setup.database import DatabaseChange, database_change
from polydev.host_setup.facts import JsonFile, PythonVersion, UnitFact
from polydev.host_setup.host_files_and_units import CONFIG_FILE, CONTROLLER_FOLDER, TOOL
from polydev.host_setup.host_report import HostReport
from polydev.host_setup.inventory_network_checks import Problem
from polydev.host_setup.inventory_values import HostData, refuse
from polydev.host_setup.packages import postgresql_client
from polydev.host_setup.pyinfra_operations import (
    PlacedFile,
    directory,
    opaque_file,
    remove_other_files,
    run_locally,
    show_diff,
    text_file,
)
from polydev.host_setup.pyinfra_types import Commands, concern, operation
from polydev.host_setup.rsync import remote_options, send
from polydev.host_setup.secret_files import SECRETS, secret_text
from polydev.host_setup.units import touched_words, unit, unit_file
from polydev.hosttool.units import MAIN as SERVICE
from polydev.hosttool.units import NEXT, SOCKET
from polydev.image_layout import STORE
from polydev.progress import Steps
from polydev.ssh import SshTarget

# Keys of the configuration that a deployment derives from other values, and from which.
DERIVED_FROM = {
    "host": "controller_listen",
    "port": "controller_listen",
    "vm_network": "bridge_address",
    "vm.cpus": "vm_cpus",
    "vm.memory_mib": "vm_memory_mib",
    "vm.translation_cache_mib": "vm_translation_cache_mib",
    "vm_root": "the units that run VMs",
    "image_store": "where images are sent to",
}
SOURCES = "src/polydev/controller"


def fixed_config(site: HostData) -> dict[str, Any]:
    """Return the part of the controller's configuration that the inventory's other keys decide."""
    return {
        "host": str(site.listen.address),
        "port": site.listen.port,
        "database_url": f"sqlite+aiosqlite:///{CONTROLLER_DATABASE}",
        "image_store": str(STORE),
        "slots": list(site.slot_numbers),
        "vm_network": str(site.bridge_address.network),
        "vm_root": VM_ROOT,
        "vm": {
            "cpus": site.vm_cpus,
            "memory_mib": site.vm_memory_mib,
            "translation_cache_mib": site.vm_translation_cache_mib,
        },
    }


def config_text(site: HostData) -> str:
    """Return the controller's configuration: the inventory's `controller` over the derived keys."""
    fixed, given = fixed_config(site), site.controller
    vm = {**fixed["vm"], **given.get("vm", {})}
    return yaml.safe_dump({**fixed, **given, "vm": vm}, sort_keys=True)


def contradicted_keys(site: HostData) -> Iterator[Problem]:
    """Yield keys of `controller` that contradict the inventory's other keys."""
    fixed = fixed_config(site)
    known, given = _flat(fixed), _flat(site.controller)
    for key in DERIVED_FROM.keys() & given.keys():
        if given[key] != known[key]:
            yield f"controller.{key}", f"is derived from {DERIVED_FROM[key]}: remove it"
    slots = site.controller.get("slots", [])
    if isinstance(slots, list | tuple) and not set(map(str, slots)) <= set(
        map(str, fixed["slots"])
    ):
        numbers = f"{fixed['slots'][0]} to {fixed['slots'][-1]}"
        yield "controller.slots", f"the host has slots {numbers}: set `slots` for more"


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the keys of its `vm` as `vm.KEY`."""
    vm = config.get("vm")
    sizes = vm.items() if isinstance(vm, Mapping) else ()
    return {**config, **{f"vm.{key}": value for key, value in sizes}}


def check_controller(site: HostData, host: str) -> None:
    """Check keys and secrets with the controller that will be deployed.

    Raises ConfigError naming each that it would reject.
    """
    if not (site.source / SOURCES).is_dir():
        refuse(
            host, [("source", f"{site.source.resolve()} is not a checkout: it has no {SOURCES}")]
        )
    if found := list(contradicted_keys(site)):
        refuse(host, found)
    secrets = {name: secret_text(name, file) for name, file in site.secrets.items()}
    check_controller_config(host, site.source, fixed_config(site), site.controller, secrets)


def unit_values(site: HostData) -> dict[str, Any]:
    return {
        "listen": site.controller_listen,
        "user": CONTROLLER_USER,
        "config_file": CONFIG_FILE,
        "credentials": {name: f"{SECRETS}/{name}" for name in sorted(site.secrets)},
        "root": CONTROLLER_FOLDER,
        "vm_root": VM_ROOT,
    }


def send_release(site: HostData, target: SshTarget, release: str, python: str) -> None:
    """Send our wheel and those that the host lacks; the running release is not touched."""
    bundle = make_bundle(site.source.resolve(), site.cache, python, Steps())
    common = ["rsync", "--times", "--checksum", *remote_options(target, site.deployment_id)]
    with TemporaryDirectory(prefix="polydev-release-") as name:
        requirements = Path(name, "requirements.txt")
        requirements.write_text(bundle.requirements)
        for files, folder in (
            ([wheel.path for wheel in bundle.wheels], f"{CONTROLLER_FOLDER}/wheels"),
            ([requirements], f"{CONTROLLER_FOLDER}/incoming/{release}"),
        ):
            size_bytes = sum(file.stat().st_size for file in files)
            send([*common, *files, target.remote(f"{folder}/")], target, folder, size_bytes)
    logger.info(f"release {release}: {len(bundle.wheels)} wheels")


@operation
def release(
    site: HostData, target: SshTarget, digest: str, release: str, commit: str, damage: list[str]
) -> Commands:
    """Create a release with this digest, without a package index; handover starts it.

    Not pip.packages: it changes the environment of the running release, and asks an index.
    """
    now = host.get_fact(JsonFile, path=f"{CONTROLLER_FOLDER}/current/release.json")
    if now.get("digest") == digest and not damage:
        host.noop(f"release {now.get('id')} is the same")
        return
    show_diff("\n".join(f"- {line}" for line in damage))
    show_diff(f"- release {now.get('id')} ({str(now.get('digest'))[:12]})")
    show_diff(f"+ release {release} ({digest[:12]})")
    python = host.get_fact(PythonVersion)
    yield StringCommand(f"mkdir -p {CONTROLLER_FOLDER}/incoming/{release}")
    yield run_locally(send_release, site, target, release, python)
    words = ["release", "create", "--id", release, "--digest", digest, "--commit", commit]
    yield StringCommand(f"{TOOL} {shlex.join(words)}")


@operation
def migration(
    digest: str,
    release: str,
    config: str,
    database: DatabaseChange,
    damage: list[str],
    files: tuple[tuple[str, str], ...] = (),
) -> Commands:
    """Migrate the configured database to the schema of the release that will run.

    Not server.shell: it would run at every deployment.
    """
    current = host.get_fact(JsonFile, path=f"{CONTROLLER_FOLDER}/current/release.json")
    running = host.get_fact(UnitFact, unit=SERVICE, files=files)
    is_same = current.get("digest") == digest and not damage
    if is_same and running.config == config and not database.changed:
        host.noop("the database has the schema of its release")
        return
    show_diff("\n".join(database.differences(current["id"] if is_same else release)))
    to = current["id"] if is_same else release
    yield StringCommand(f"{TOOL} release migrate --id {shlex.quote(to)}")


def require_free_address(site: HostData, found: dict[str, Any]) -> None:
    """Raise DeployError before any change if the controller cannot listen at its address.

    `found` is the host tool's report of the controller's socket.
    """
    listen = site.listen
    where = f"{host.name}: controller_listen {listen}"
    if not found.get("hasAddress", True) and listen.address != site.gateway:
        raise DeployError(
            f"{where}: the host has no address {listen.address}",
            "on the host, `ip address` lists its addresses; 0.0.0.0 means all of them",
        )
    if others := found.get("others"):
        first = others[0]
        raise DeployError(
            f"{where}: already in use by {first['name']} (pid {first['pid']}, {first['unit']})",
            "stop it, or choose another port",
        )


@operation
def mend_socket(lost: bool) -> Commands:
    """Let systemd listen on the socket again, if the service had to do it by itself.

    Not systemd.service: to systemd, a socket unit without its socket is still active.
    """
    if not lost:
        host.noop(f"{SOCKET} listens")
        return
    show_diff(f"- {SOCKET}: active, but without its socket")
    show_diff(f"+ {SOCKET}: listens")
    # The service holds the address; it requires the socket, so it stops with it.
    yield StringCommand(f"systemctl stop {SOCKET}")
    yield StringCommand(f"systemctl start {SOCKET} {SERVICE}")


@operation
def handover(
    digest: str,
    release: str,
    config: str,
    damage: list[str],
    files: tuple[tuple[str, str], ...] = (),
    move: str = "",
) -> Commands:
    """Change the service to this release and configuration; connections are always accepted.

    Not systemd.service: a restart would refuse connections. `move` are the arguments of a move of
    the database, during which the service is stopped.
    """
    current = host.get_fact(JsonFile, path=f"{CONTROLLER_FOLDER}/current/release.json")
    running = host.get_fact(UnitFact, unit=SERVICE, files=files)
    is_same = current.get("digest") == digest and not damage
    is_current = running.config == config and not running.touched
    if is_same and running.active and running.enabled and is_current:
        host.noop(f"{SERVICE} runs release {current.get('id')}")
        return
    to = current["id"] if is_same else release
    was = f"release {current.get('id')}, configuration {running.config or 'unknown'}"
    show_diff(f"- {SERVICE}: {was}{touched_words(running, config)}")
    show_diff(f"+ {SERVICE}: release {to}, configuration {config}")
    if move:
        show_diff(f"  {SERVICE} is stopped while its database is copied")
        yield StringCommand(f"{TOOL} database move --release {shlex.quote(to)} {move}")
        return
    yield StringCommand("systemctl daemon-reload")
    if not running.enabled:
        yield StringCommand(f"systemctl enable {SERVICE}")
    yield StringCommand(f"{TOOL} handover --release {shlex.quote(to)}")


def _secrets(site: HostData) -> list[PlacedFile]:
    directory(SECRETS, mode="700")
    remove_other_files(name="secrets without use", folder=SECRETS, wanted=list(site.secrets))
    placed = []
    for name, file in sorted(site.secrets.items()):
        path, text = f"{SECRETS}/{name}", secret_text(name, file)
        opaque_file(path, text.encode(), mode="600")
        placed.append(PlacedFile(path, text))
    return placed


@concern("Controller")
def controller(site: HostData, target: SshTarget, deployment_id: str, live: HostReport) -> None:
    require_free_address(site, live.socket)
    database = database_change(site, live.database)
    if database.is_postgresql:
        postgresql_client(target)
    values = unit_values(site)
    settings = PlacedFile(CONFIG_FILE, config_text(site))
    text_file(CONFIG_FILE, settings.text, mode="640", group=CONTROLLER_USER)
    secrets = _secrets(site)
    socket = unit_file(SOCKET, values)
    unit_file(f"{NEXT}.service", values, settings, *secrets)
    config = unit_file(SERVICE, values, settings, *secrets)
    digest = source_digest(site.source.resolve())
    commit = deployment_id.partition("-")[2]
    release(
        name="release",
        site=site,
        target=target,
        digest=digest,
        release=deployment_id,
        commit=commit,
        damage=live.damage,
    )
    migration(
        name=database.operation,
        digest=digest,
        release=deployment_id,
        config=config.hash,
        database=database,
        damage=live.damage,
        files=config.files,
    )
    unit(
        name=SOCKET,
        unit=SOCKET,
        config=socket.hash,
        files=socket.files,
        # Stopping the socket stops the service, which requires it. A service stopped alone would be
        # started by the next request, and systemd restarts no socket whose service runs.
        stop_first=SOCKET,
    )
    mend_socket(name="socket", lost=bool(live.socket.get("lost")))
    handover(
        name="handover",
        digest=digest,
        release=deployment_id,
        config=config.hash,
        damage=live.damage,
        files=config.files,
        move=database.move_words(deployment_id),
    )
