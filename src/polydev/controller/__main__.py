"""`master-controller`: the controller's command line, on the host.

Answers go to stdout, logs to stderr. Each verb only imports what it needs, since systemd waits for
the start of `serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polydev
from polydev.controller.cli.host_verbs import add_groups
from polydev.controller.cli.verb import Run
from polydev.controller.release_id import release_id
from polydev.errors import Error

if TYPE_CHECKING:
    from polydev.controller.settings import ControllerSettings


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.verb == "check-config":
        return _check_config()
    from polydev.controller.logs import configure_logs
    from polydev.controller.settings import load_settings

    try:
        settings = load_settings(arguments.config)
        configure_logs(settings.log_level, settings.log_format, settings.vm_network)
        if "command" in arguments:
            return _command(arguments.command, settings, arguments)
        if arguments.verb == "serve":
            return _serve(settings, only_if_healthy=arguments.only_if_healthy)
        if arguments.verb == "migrate":
            return _migrate(settings, with_tools=arguments.require_tools)
        return _health(settings)
    except Error as error:
        print_error(error)
        return 1


def _check_config() -> int:
    from polydev.controller.check_config import problems

    found = problems(json.load(sys.stdin))
    _print_json({"problems": found})
    return 1 if found else 0


def _serve(settings: ControllerSettings, *, only_if_healthy: bool) -> int:
    from polydev.controller.server import serve

    return serve(settings, only_if_healthy=only_if_healthy)


def _migrate(settings: ControllerSettings, *, with_tools: bool) -> int:
    from polydev.controller.migrate import migrate
    from polydev.controller.store.database_check import check_database

    async def checked() -> dict[str, object]:
        found = await check_database(settings.database_url, with_tools=with_tools)
        before, after = await migrate(settings.database_url)
        return {"database": found["database"], "before": before, "after": after}

    _print_json(asyncio.run(checked()))
    return 0


def _health(settings: ControllerSettings) -> int:
    from polydev.controller.app import create_app
    from polydev.controller.in_process_request import ask
    from polydev.controller.url_paths import HEALTH_PATH

    async def report() -> tuple[int, bytes]:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            return await ask(app, HEALTH_PATH)

    status, body = asyncio.run(report())
    _print_json(json.loads(body))
    return 0 if status == 200 else 1


def _command(run: Run, settings: ControllerSettings, arguments: argparse.Namespace) -> int:
    async def answer() -> object:
        return await run(settings, arguments)

    _print_json(asyncio.run(answer()))
    return 0


def _print_json(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")


def print_error(error: Error) -> None:
    """Print what failed, and what to do next."""
    sys.stderr.write(f"error: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"next:  {error.hint}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("master-controller", description="The controller of a host.")
    release = release_id(None) or "no release"
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {polydev.__version__} ({release})"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    helps = {
        "serve": "serve until SIGTERM, on systemd's sockets or the configured address",
        "migrate": "migrate the database to this release's schema, in one transaction",
        "health": "print the health report as JSON; exit status 1 if unhealthy",
    }
    for verb, text in helps.items():
        added = verbs.add_parser(verb, help=text, description=f"{text}.")
        _add_config(added)
        if verb == "migrate":
            added.add_argument(
                "--require-tools",
                action="store_true",
                help="fail if PostgreSQL's tools, which backups need, are missing or too old",
            )
        if verb == "serve":
            added.add_argument(
                "--only-if-healthy",
                action="store_true",
                help="exit with status 1 and accept no connection unless healthy",
            )
    verbs.add_parser(
        "check-config",
        help="check the configuration on stdin, before a host has it",
        description="JSON in and out, as polydev.controller.check_config describes.",
    )
    add_groups(verbs, _add_config)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)"
    )


if __name__ == "__main__":
    sys.exit(main())
