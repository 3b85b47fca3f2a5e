"""The message about a checkout that changes while it is deployed."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.host_setup.checkout_errors import missing_part_error


@pytest.mark.parametrize(
    ("file", "is_ours"), [("here/file", True), ("elsewhere/file", False), (None, False)]
)
def test_missing_file_inside_the_checkout_is_reported(
    file: str | None, is_ours: bool, tmp_path: Path
) -> None:
    error = FileNotFoundError(2, "none", str(tmp_path / file) if file else None)
    found = missing_part_error(error, tmp_path / "here")
    assert (found is not None) is is_ours
    if found:
        assert found.message.startswith(f"{tmp_path}/here/file is missing")


def test_checkout_defaults_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert missing_part_error(FileNotFoundError(2, "none", "file")) is not None
    assert missing_part_error(FileNotFoundError(2, "none", "/elsewhere/file")) is None


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [("polydev.vm", True), ("polydev", True), ("polydevs", False), ("yaml", False), (None, False)],
)
def test_missing_module_of_polydev_is_reported(name: str | None, is_ours: bool) -> None:
    found = missing_part_error(ImportError("no module", name=name))
    assert (found is not None) is is_ours
