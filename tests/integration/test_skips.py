"""A test that is skipped fails in CI, and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from polydev.processes import run

ROOT = Path(__file__).resolve().parents[2]
SKIPS = {
    "test": ("def test_it(): pytest.skip('no chromium')", "1 failed"),
    "fixture": (
        "@pytest.fixture\ndef it(): pytest.skip('no chromium')\ndef test_it(it): pass",
        "1 error",
    ),
    "file": ("pytest.skip('no chromium', allow_module_level=True)", "1 error"),
}


@pytest.mark.parametrize("where", SKIPS)
@pytest.mark.parametrize("ci", ["true", None])
def test_skipped_test_fails_in_ci(
    where: str, ci: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, expected = SKIPS[where]
    passes = "@pytest.mark.xfail\ndef test_known(): assert False\ndef test_other(): pass"
    (tmp_path / "test_it.py").write_text(f"import pytest\n{passes}\n{text}\n")
    argv = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider"]
    monkeypatch.delenv("CI", raising=False)
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    env |= {"CI": ci} if ci else {}
    done = run([*argv, "-p", "tests.skips", str(tmp_path)], cwd=tmp_path, env=env, check=False)
    if ci:
        assert expected in done.stdout
        assert done.status != 0
        assert "no chromium" in done.stdout
    else:
        assert "1 skipped" in done.stdout
        assert "failed" not in done.stdout.replace("xfailed", "")
