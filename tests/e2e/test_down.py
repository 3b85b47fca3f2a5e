"""The end of the main job: ./inv down, after all tests that use what ./inv up started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.inv import Inv


def test_down_ends_vm_and_lab_and_keeps_golden_image(main_inv: Inv, up: dict[str, Any]) -> None:
    lab_ran = main_inv.answer("where").get("lab") == up["lab"]
    ended = [main_inv.answer("down")["labEnded"] for _ in range(2)]
    assert ended == [lab_ran, False]
    assert main_inv.answer("where") == {"running": False}
    assert not (main_inv.settings.state / "local").exists()
    assert not (main_inv.settings.state / "labs" / main_inv.lab).exists()
    assert processes_with(str(main_inv.settings.state)) == []
    assert main_inv.answer("golden.show", "golden")["digest"] == up["image"]


def processes_with(word: str) -> list[str]:
    """Command lines on this machine that have `word` in them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if word in line:
            found.append(line)
    return found
