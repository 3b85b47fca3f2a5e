"""Call operators' verbs with the inventory of a host."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from polydev.processes import Completed, run
from tests.hosts import ROOT, DeployedHost


@dataclass(frozen=True)
class Operator:
    """./inv with the lab's inventory as an option, as for any host."""

    host: DeployedHost
    token: str = ""

    def __call__(self, verb: str, *words: str, in_json: bool = True) -> Completed:
        argv = [sys.executable, "-m", "polydev", "--search-root", str(ROOT), verb]
        argv += ["--inventory", "inventory/lab.py", *(["--json"] if in_json else []), *words]
        env = {"POLYDEV_TOKEN": self.token} if self.token else {}
        return run(argv, cwd=ROOT, env=env, check=False)

    def answer(self, verb: str, *words: str) -> Any:
        done = self(verb, *words)
        assert done.status == 0, done.stderr
        return json.loads(done.stdout)
