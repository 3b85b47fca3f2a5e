"""The deploy process: it writes what it does to stdout, one JSON object a line.

    describe    every host of the inventory: its connection and what a backup of it holds
    apply       plan one host; with the word `go` on stdin, apply the plan

pyinfra patches sockets and threads of its process, so the verbs run it in one of its own. That
process ends with the verb, however the verb ends.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from polydev.errors import ConfigError, Error
from polydev.host_setup.checkout_errors import missing_part_error
from polydev.host_setup.inventory_hosts import described_hosts

PR_SET_PDEATHSIG = 1


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    # The kernel kills this process with the verb's: a deployment must not go on alone.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if arguments.verb == "describe":
            emit("hosts", hosts=described_hosts(Path(arguments.inventory)))
            return 0
        from polydev.host_setup.pyinfra_runner import Runner

        runner = Runner(Path(arguments.inventory), Path(arguments.deploy), emit)
        return runner.apply(arguments.host, json.loads(arguments.data), plan_only=arguments.plan)
    except Error as error:
        emit("error", **error.as_dict())
        return 1
    except (FileNotFoundError, ModuleNotFoundError) as error:
        if (missing := missing_part_error(error)) is None:
            raise
        emit("error", **missing.as_dict())
        return 1


def emit(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m polydev.host_setup", description=__doc__)
    parser.add_argument("verb", choices=["describe", "apply"])
    parser.add_argument("--inventory", required=True)
    parser.add_argument("--deploy", default="deploy.py")
    parser.add_argument("--host", help="name of one host of the inventory")
    parser.add_argument("--data", default="{}", help="values over the inventory's, as JSON")
    parser.add_argument("--plan", action="store_true", help="only say what would change")
    return parser


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.exit(error.message)
