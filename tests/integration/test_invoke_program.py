"""Ctrl-C in the process of ./inv: while it loads, and while its verb runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from polydev.processes import Completed, run

pytestmark = pytest.mark.integration

CTRL_C = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
VERB = """
from invoke import Context
from polydev.cli import edge, task

@task
@edge
def work(context: Context) -> None:
    os.kill(os.getpid(), signal.SIGINT)
"""


def work(folder: Path, tasks: str, signals: str = "--default-signal=INT") -> Completed:
    """Run ./inv with these verbs."""
    (folder / "tasks.py").write_text(tasks)
    inv = [sys.executable, "-m", "polydev", "--search-root", str(folder)]
    return run(["env", signals, *inv, "work"], check=False, timeout_seconds=300)


def test_ctrl_c_while_verbs_load_ends_silently(tmp_path: Path) -> None:
    done = work(tmp_path, CTRL_C + VERB)
    assert (done.status, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_in_verb_prints_interrupted(tmp_path: Path) -> None:
    done = work(tmp_path, "import os, signal\n" + VERB)
    assert (done.status, done.stdout) == (130, "")
    assert done.stderr.startswith("interrupted")


def test_ignored_sigint_does_not_end_the_verb(tmp_path: Path) -> None:
    done = work(tmp_path, CTRL_C + VERB, "--ignore-signal=INT")
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
