"""The controller's command line: one database and its configuration, and verbs called in turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polydev.controller.__main__ import main


class CommandLine:
    """`main` of the controller; each call stands for a process. Nothing is migrated."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.database = folder / "controller.sqlite3"
        self.url = f"sqlite+aiosqlite:///{self.database}"
        self.config = folder / "config.yaml"
        self.config.write_text(f"database_url: {self.url}\n")
        self._capsys = capsys

    def __call__(self, *words: str) -> Any:
        """Run a verb that must succeed; return its answer."""
        status = main([*words, "--config", str(self.config)])
        said = self._capsys.readouterr()
        assert status == 0, said.err
        return json.loads(said.out)

    def refused(self, *words: str) -> str:
        """Run a verb that must fail; return its message."""
        assert main([*words, "--config", str(self.config)]) == 1
        said = self._capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        return said.err
