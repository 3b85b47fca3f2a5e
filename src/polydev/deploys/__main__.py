"""pyinfra as a process of its own that tells what it does, one JSON object a line.

    describe    every host of the inventory: how it is reached, what it should be, its scope
    apply       plan one host; with the word `go` on stdin, make it so

Apart from the process that runs the deployment, because pyinfra's connections want a process
of their own, and so that they end with it, however it ends.
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

from polydev.deploys.checkout import missing_part_error
from polydev.errors import ConfigError, Error

PR_SET_PDEATHSIG = 1


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    # A deployment whose operator's process was killed must not go on by itself.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        from polydev.deploys.runner import Runner

        runner = Runner(Path(arguments.inventory), Path(arguments.deploy), emit)
        if arguments.verb == "describe":
            emit("hosts", hosts=runner.describe())
            return 0
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
    parser = argparse.ArgumentParser(prog="python -m polydev.deploys", description=__doc__)
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
