"""The contents of a release, and the wheels that its lock file names."""

from __future__ import annotations

import ast
import itertools
import shutil
from pathlib import Path

import pytest

from polydev.errors import ConfigError
from polydev.host_setup import web_assets
from polydev.host_setup.controller_wheels import (
    LOCK,
    PACKAGE,
    PYTHON_VERSIONS,
    RELEASED,
    Pin,
    locked_pins,
    make_bundle,
    pip_download_words,
    requirements_text,
    source_digest,
    vm_digest,
)
from polydev.progress import Steps

ROOT = Path(__file__).resolve().parents[2]
SHA = "sha256:" + "0" * 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout that tests may change."""
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=leave)
    (tmp_path / LOCK).parent.mkdir()
    shutil.copy(ROOT / LOCK, tmp_path / LOCK)
    shutil.copytree(ROOT / web_assets.PROJECT, tmp_path / web_assets.PROJECT)
    return tmp_path


@pytest.mark.parametrize(
    "file", ["errors.py", "controller/app.py", "controller/migrations/versions/r0002_new.py"]
)
def test_digest_changes_with_released_files(root: Path, file: str) -> None:
    before = source_digest(root)
    with (root / PACKAGE / file).open("a") as changed:
        changed.write("# changed\n")
    assert source_digest(root) != before


@pytest.mark.parametrize(
    ("file", "is_of_vms"),
    [("vm/template_holder.py", True), ("errors.py", True), ("controller/app.py", False)],
)
def test_vm_digest_covers_only_code_that_runs_vms(root: Path, file: str, is_of_vms: bool) -> None:
    before = vm_digest(root)
    with (root / PACKAGE / file).open("a") as changed:
        changed.write("# changed\n")
    assert (vm_digest(root) != before) is is_of_vms


def test_digest_changes_with_lock_and_file_names(root: Path) -> None:
    first = source_digest(root)
    (root / PACKAGE / "vm/boot_stages.py").rename(root / PACKAGE / "vm/steps.py")
    second = source_digest(root)
    (root / LOCK).write_text("")
    assert len({first, second, source_digest(root)}) == 3


def test_digest_ignores_unreleased_files_and_modes(root: Path) -> None:
    before = source_digest(root)
    (root / PACKAGE / "controller/__pycache__").mkdir()
    (root / PACKAGE / "controller/__pycache__/app.cpython-311.pyc").write_bytes(b"x")
    (root / PACKAGE / "image/build.py").write_text("")
    (root / PACKAGE / "controller/app.py").touch()
    (root / PACKAGE / "controller/app.py").chmod(0o600)
    assert source_digest(root) == before


def test_digest_without_the_lock_is_refused(root: Path) -> None:
    (root / LOCK).unlink()
    with pytest.raises(ConfigError, match=r"requirements/controller\.txt: cannot be read"):
        source_digest(root)


def test_released_files_import_only_released_modules() -> None:
    folder = ROOT / PACKAGE
    files = [file for part in RELEASED for file in (folder / part, *(folder / part).rglob("*.py"))]
    for file in files:
        if file.is_dir():
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polydev."):
                part = str(node.module).split(".")[1]
                assert {part, f"{part}.py"} & set(RELEASED), f"{file} imports {node.module}"


@pytest.mark.parametrize("version", PYTHON_VERSIONS)
def test_lock_has_one_version_of_each_package_per_python(version: str) -> None:
    pins = locked_pins((ROOT / LOCK).read_text(), version)
    names = [pin.name for pin in pins]
    assert len(names) == len(set(names))
    assert {"fastapi", "uvicorn", "sqlalchemy", "alembic", "structlog", "greenlet"} <= set(names)
    assert ("exceptiongroup" in names) == (version == "3.10")
    assert all(each.startswith("sha256:") for pin in pins for each in pin.hashes)


def test_pins_follow_the_markers_of_the_python_version() -> None:
    lock = f"""\
# made by a tool
one==1.0 ; python_full_version < '3.11' \\
    --hash={SHA} \\
    --hash={SHA[:-1]}1
    # via two
one==2.0 ; python_full_version >= '3.11' and sys_platform == 'linux' \\
    --hash={SHA}
other==3 ; sys_platform == 'win32' \\
    --hash={SHA}
"""
    assert locked_pins(lock, "3.10") == [Pin("one", "1.0", (SHA, f"{SHA[:-1]}1"))]
    assert locked_pins(lock, "3.13") == [Pin("one", "2.0", (SHA,))]


@pytest.mark.parametrize("line", ["one==1.0", f"one>=1.0 --hash={SHA}", f"one==1.* --hash={SHA}"])
def test_lock_without_version_or_hash_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match="one: needs == with a version, and hashes"):
        locked_pins(line, "3.11")


def test_unreadable_lock_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot read this requirement: one two"):
        locked_pins("one two", "3.11", LOCK)


def test_requirements_text_is_in_pip_format() -> None:
    text = requirements_text([Pin("one", "1.0", ("sha256:a", "sha256:b")), Pin("two", "2", (SHA,))])
    assert text == f"one==1.0 --hash=sha256:a --hash=sha256:b\ntwo==2 --hash={SHA}\n"


def test_wheels_are_downloaded_for_the_hosts_python_and_glibc() -> None:
    words = pip_download_words(Path("r.txt"), Path("to"), "3.12")
    assert words[words.index("--python-version") + 1] == "3.12"
    platforms = [after for word, after in itertools.pairwise(words) if word == "--platform"]
    assert platforms[0] == "manylinux_2_35_x86_64"
    assert {"manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux1_x86_64"} <= set(platforms)


def test_unsupported_python_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not run on Python 3\.9"):
        make_bundle(ROOT, tmp_path, "3.9", Steps())
