"""Verbs for the host itself: credentials, templates, test alerts, copies of the database.

Each verb is an entry of `GROUPS`: its help, a coroutine whose result is printed as JSON, and its
options. They work on the database, whether the service runs or not.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydev.controller.cli.user_verbs import USER_GROUPS
from polydev.controller.cli.verb import ControllerVerb, opened

if TYPE_CHECKING:
    from polydev.controller.settings import ControllerSettings


async def rotate_credentials(
    settings: ControllerSettings, _arguments: argparse.Namespace
) -> object:
    from polydev.controller.credential_encryption import keyring_of
    from polydev.controller.store.credentials import CredentialStore

    keys = keyring_of(settings.credentials_key)
    async with opened(settings.database_url) as database:
        return vars(await CredentialStore(database, keys).seal_anew())


async def send_test_alerts(settings: ControllerSettings, _arguments: argparse.Namespace) -> object:
    from polydev.controller.host.alert_test_message import send_test_messages

    return [vars(answer) for answer in await send_test_messages(settings.alert_urls)]


async def build_template(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    # Before the imports: each deployment starts this verb, also where templates are switched off.
    if not settings.templates:
        return {"made": False, "enabled": False}
    from polydev.controller.machines.template_maker import make_template
    from polydev.processes import hand_over

    def say(words: str) -> None:
        sys.stderr.write(f"{words}\n")

    template, made = await asyncio.to_thread(make_template, settings, say)
    if made and arguments.again:
        say(f"template {template.key[:12]} is built; checking whether another one is wanted by now")
        hand_over(sys.argv)
    return {"made": made, "enabled": True, **vars(template)}


async def list_templates(settings: ControllerSettings, _arguments: argparse.Namespace) -> object:
    from polydev.controller.machines.template_selection import templates_of

    return [vars(template) for template in templates_of(settings).all()]


async def report_templates(settings: ControllerSettings, _arguments: argparse.Namespace) -> object:
    from polydev.controller.api.pool import pool_answer
    from polydev.controller.api.templates import templates_answer
    from polydev.controller.database import create_engine
    from polydev.controller.machines.systemd_hypervisor import SystemdHypervisor
    from polydev.controller.store.transactions import Database
    from polydev.controller.store.vms import Vms

    hypervisor = SystemdHypervisor(settings)
    database = Database(create_engine(settings.database_url))
    try:
        answer = await templates_answer(settings, hypervisor)
        pool = await pool_answer(settings, Vms(database, settings.session), hypervisor)
    finally:
        await hypervisor.close()
        await database.close()
    told = answer.model_dump(mode="json", by_alias=True)
    return {**told, "pool": pool.model_dump(mode="json", by_alias=True)}


async def back_up_database(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.backup import backup

    return await backup(settings.database_url, arguments.file)


async def restore_database(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.backup import require_restorable, restore

    if arguments.check:
        return await require_restorable(settings.database_url, arguments.file)
    return await restore(settings.database_url, arguments.file, in_use=arguments.in_use)


async def check_database(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.database_check import check_database

    return await check_database(settings.database_url, with_tools=not arguments.no_tools)


FILE = {"type": Path, "metavar": "FILE"}
GROUPS: dict[str, tuple[str, dict[str, ControllerVerb]]] = {
    **USER_GROUPS,
    "credentials": (
        "stored credentials of users, encrypted with the keys of the host",
        {
            "rotate": ControllerVerb(
                "encrypt all credentials with the first key; print the counts as JSON",
                rotate_credentials,
            ),
        },
    ),
    "templates": (
        "templates: saved VMs that new VMs are resumed from",
        {
            "build": ControllerVerb(
                "build the golden image's template, unless it exists",
                build_template,
                {
                    "--again": {
                        "action": "store_true",
                        "help": "start again after the build: another one may be wanted by then",
                    },
                },
            ),
            "list": ControllerVerb("print all templates as JSON", list_templates),
            "report": ControllerVerb(
                "print as JSON which template serves, the state of the build, and the pool",
                report_templates,
            ),
        },
    ),
    "alert": (
        "messages about alerts, to the addresses in the secret alert-urls",
        {
            "test": ControllerVerb(
                "send a test message to each address; print the results as JSON", send_test_alerts
            ),
        },
    ),
    "database": (
        "backup and restore of the database",
        {
            "backup": ControllerVerb(
                "back up the database to a new file, also while it is in use",
                back_up_database,
                {"file": {**FILE, "help": "the file to write; it must not exist"}},
            ),
            "restore": ControllerVerb(
                "restore a backup, completely or not at all; the service must be stopped",
                restore_database,
                {
                    "file": {**FILE, "help": "a file that `database backup` has written"},
                    "--in-use": {
                        "action": "store_true",
                        "help": "allow the service to run meanwhile; PostgreSQL only",
                    },
                    "--check": {
                        "action": "store_true",
                        "help": "only check whether the backup can be restored",
                    },
                },
            ),
            "check": ControllerVerb(
                "check that the database can be used; print what it is as JSON",
                check_database,
                {
                    "--no-tools": {
                        "action": "store_true",
                        "help": "do not check PostgreSQL's tools, which backups need",
                    },
                },
            ),
        },
    ),
}


def add_groups(verbs: Any, add_config: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add every group to the subparsers `verbs`; the chosen verb is `arguments.command`."""
    for group, (text, members) in GROUPS.items():
        parser = verbs.add_parser(group, help=text, description=f"{text}.")
        inner = parser.add_subparsers(required=True, metavar="VERB")
        for name, verb in members.items():
            added = inner.add_parser(name, help=verb.help, description=f"{verb.help}.")
            for option, words in verb.options.items():
                added.add_argument(option, **words)
            add_config(added)
            added.set_defaults(command=verb.run)
