"""What an operator does on the host itself: users, tokens, credentials, copies of the database.

Each verb is a line of `GROUPS`: its words, its options, and a coroutine that answers what is
printed as JSON. They work on the database, whether the service runs or not.
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
    from polydev.controller.sealing import keyring_of
    from polydev.controller.store.credentials import CredentialStore

    keys = keyring_of(settings.credentials_key)
    async with opened(settings.database_url) as database:
        return vars(await CredentialStore(database, keys).seal_anew())


async def send_test_alerts(settings: ControllerSettings, _arguments: argparse.Namespace) -> object:
    from polydev.controller.host.alert_test_message import send_test_messages

    return [vars(answer) for answer in await send_test_messages(settings.alert_urls)]


async def build_template(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.machines.template_maker import make_template
    from polydev.run import hand_over

    if not settings.templates:
        return {"made": False, "enabled": False}

    def say(words: str) -> None:
        sys.stderr.write(f"{words}\n")

    template, made = await asyncio.to_thread(make_template, settings, say)
    if made and arguments.again:
        say(f"template {template.key[:12]} is made; looking whether it is still the wanted one")
        hand_over(sys.argv)
    return {"made": made, "enabled": True, **vars(template)}


async def list_templates(settings: ControllerSettings, _arguments: argparse.Namespace) -> object:
    from polydev.controller.machines.host_templates import templates_of

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
        "credentials of users, sealed by the keys of the host",
        {
            "rotate": ControllerVerb(
                "seal with the first key what another one seals; print how many as JSON",
                rotate_credentials,
            ),
        },
    ),
    "templates": (
        "booted VMs, saved, from which other VMs are resumed",
        {
            "build": ControllerVerb(
                "make the golden image's, unless it is there; in a network namespace of its own",
                build_template,
                {
                    "--again": {
                        "action": "store_true",
                        "help": "once it is made, begin anew: another one may be wanted by then",
                    },
                },
            ),
            "list": ControllerVerb("print those that are there as JSON", list_templates),
            "report": ControllerVerb(
                "print as JSON which one serves, whether one is being made or failed, and the pool",
                report_templates,
            ),
        },
    ),
    "alert": (
        "messages about alerts, to what the secret alert-urls names",
        {
            "test": ControllerVerb(
                "send a test message to each; print what came of it as JSON", send_test_alerts
            ),
        },
    ),
    "database": (
        "copies of the database, and back from one",
        {
            "backup": ControllerVerb(
                "copy the database to a new file while it is in use",
                back_up_database,
                {"file": {**FILE, "help": "where to; it must not exist"}},
            ),
            "restore": ControllerVerb(
                "replace the database by a copy, whole or not at all; the service must be stopped",
                restore_database,
                {
                    "file": {**FILE, "help": "what `database backup` wrote"},
                    "--in-use": {
                        "action": "store_true",
                        "help": "the service may go on meanwhile; PostgreSQL only",
                    },
                    "--check": {
                        "action": "store_true",
                        "help": "only read the copy, and say whether it could be put back",
                    },
                },
            ),
            "check": ControllerVerb(
                "see that the database can be used, and print what it is as JSON",
                check_database,
                {
                    "--no-tools": {
                        "action": "store_true",
                        "help": "do not look for PostgreSQL's own tools, which copies need",
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
