"""Ctrl-C during a test that waits in asyncio ends the run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from polydev.processes import run

ROOT = Path(__file__).resolve().parents[2]
SWALLOWING = """
import asyncio, contextlib, os, signal

def test_swallowing():
    async def swallow():
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
    asyncio.run(swallow())

def test_next():
    pass
"""


def test_keyboard_interrupt_in_asyncio_test_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SWALLOWING)
    argv = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider"]
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    done = run([*argv, "-p", "tests.interrupts", str(tmp_path)], cwd=tmp_path, env=env, check=False)
    assert done.status == pytest.ExitCode.INTERRUPTED
    assert "no tests ran" in done.stdout
