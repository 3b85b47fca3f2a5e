"""docs: write the documents that are generated from code."""

from __future__ import annotations

import sys

from invoke.context import Context

from polydev.cli import edge, task
from verbs.paths_and_help import ROOT


@task()
@edge
def docs(context: Context) -> None:
    """Write docs/verbs.md and docs/api.md from the verbs and the controller's API."""
    from polydev.processes import run_lines

    run_lines([sys.executable, "-m", "verbs.generated_docs"], print, cwd=ROOT)
