"""Real release bundles, and a release installed from one as on a host: without a package index."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polydev.errors import BuildError
from polydev.host_setup import web_assets
from polydev.host_setup.controller_wheels import LOCK, PACKAGE, Bundle, make_bundle, source_digest
from polydev.processes import run, spawn
from polydev.progress import Steps
from polydev.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
RELEASE = "20261121_101500-07af4b7"
DEADLINE_SECONDS = 120


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout from the start of the tests, since somebody may edit it meanwhile."""
    made = tmp_path_factory.mktemp("checkout")
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / PACKAGE, made / PACKAGE, ignore=leave)
    (made / LOCK).parent.mkdir()
    shutil.copy(ROOT / LOCK, made / LOCK)
    shutil.copytree(ROOT / web_assets.PROJECT, made / web_assets.PROJECT)
    return made


@pytest.fixture(scope="module")
def bundle(root: Path) -> Bundle:
    return make_bundle(root, Settings.from_environment().cache, PYTHON_VERSION, Steps())


@pytest.fixture
def cache(tmp_path: Path, bundle: Bundle) -> Path:
    """A cache that has the wheels of the lock and what pages load, but no wheel of ours."""
    house = bundle.wheels[1].path.parent
    made = tmp_path / "cache"
    shutil.copytree(house, made / "controller" / "wheelhouse" / house.name)
    (made / "controller" / "web").symlink_to(house.parents[1] / "web")
    return made


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bundle_names_each_wheel_once(bundle: Bundle, root: Path) -> None:
    assert bundle.digest == source_digest(root)
    lines = bundle.requirements.splitlines()
    assert len(lines) == len(bundle.wheels)
    assert {line.rpartition("sha256:")[2] for line in lines} == {w.sha256 for w in bundle.wheels}
    assert all(wheel.path.suffix == ".whl" for wheel in bundle.wheels)


@pytest.mark.usefixtures("offline", "nothing_left")
def test_second_bundle_needs_no_network_and_builds_nothing(
    bundle: Bundle, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert make_bundle(root, Settings.from_environment().cache, PYTHON_VERSION, Steps()) == bundle


@pytest.mark.usefixtures("offline", "nothing_left")
def test_polydev_wheel_is_reproducible_in_another_folder(
    bundle: Bundle, root: Path, cache: Path, tmp_path: Path
) -> None:
    """The other folder has other times and modes; the build does not change the checkout."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved, copy_function=shutil.copyfile)
    for path in moved.rglob("*.py"):
        path.chmod(0o755)
        os.utime(path, (1, 1))
    before = files(moved)
    again = make_bundle(moved, cache, PYTHON_VERSION, Steps())
    assert files(moved) == before
    assert again.wheels[0].path != bundle.wheels[0].path
    assert again.requirements == bundle.requirements


@pytest.mark.usefixtures("offline", "nothing_left")
def test_changed_sources_change_the_wheel_name(
    bundle: Bundle, root: Path, cache: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(root, changed)
    with (changed / PACKAGE / "errors.py").open("a") as file:
        file.write("# changed\n")
    other = make_bundle(changed, cache, PYTHON_VERSION, Steps())
    assert other.wheels[0].path.name != bundle.wheels[0].path.name
    assert [w.sha256 for w in other.wheels[1:]] == [w.sha256 for w in bundle.wheels[1:]]


@pytest.mark.usefixtures("offline", "nothing_left")
def test_damaged_cached_wheel_is_not_used(root: Path, cache: Path) -> None:
    wheel = next(cache.glob("controller/wheelhouse/*/uvicorn-*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")
    with pytest.raises(BuildError, match="cannot download the controller"):
        make_bundle(root, cache, PYTHON_VERSION, Steps())
    assert list(cache.glob("controller/wheelhouse/*")) == []


def test_polydev_wheel_contains_controller_and_no_image_code(bundle: Bundle) -> None:
    with zipfile.ZipFile(bundle.wheels[0].path) as wheel:
        names = set(wheel.namelist())
        (scripts,) = [name for name in names if name.endswith("entry_points.txt")]
        assert b"master-controller = polydev.controller.__main__:main" in wheel.read(scripts)
        assert b"polydev-template-holder = polydev.vm.template_holder:main" in wheel.read(scripts)
    assert {"polydev/controller/migrations/env.py", "polydev/errors.py"} <= names
    assert "polydev/controller/migrations/versions/r0001_users.py" in names
    assert not any(name.startswith("polydev/image/") for name in names)


@pytest.mark.usefixtures("offline")
def test_release_installed_from_a_bundle_serves(bundle: Bundle, tmp_path: Path) -> None:
    command = install(bundle, tmp_path)
    config = tmp_path / "config.yaml"
    database = f"sqlite+aiosqlite:///{tmp_path}/controller.sqlite3"
    config.write_text(json.dumps({"database_url": database, "image_store": str(tmp_path)}))
    assert RELEASE in run([command, "--version"]).stdout
    assert json.loads(run([command, "migrate", "--config", config]).stdout)["before"] is None
    with serving(command, config) as port:
        url = f"http://127.0.0.1:{port}/api/auth/health"
        with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
            report = json.load(answer)
    assert (report["status"], report["release"]) == ("healthy", RELEASE)


def install(bundle: Bundle, host: Path) -> Path:
    """Install a release as on a host; return the path of its command."""
    wheels = host / "wheels"
    wheels.mkdir()
    for wheel in bundle.wheels:
        shutil.copy(wheel.path, wheels)
    release = host / "releases" / RELEASE
    release.mkdir(parents=True)
    (release / "requirements.txt").write_text(bundle.requirements)
    (release / "release.json").write_text(json.dumps({"id": RELEASE, "digest": bundle.digest}))
    run([sys.executable, "-m", "venv", release / "venv"])
    pip = release / "venv/bin/pip"
    requirements = release / "requirements.txt"
    run(
        [
            pip,
            "install",
            "--no-index",
            "--find-links",
            wheels,
            "--require-hashes",
            "-r",
            requirements,
        ]
    )
    run([pip, "check"])
    return release / "venv/bin/master-controller"


@contextmanager
def serving(command: Path, config: Path) -> Iterator[int]:
    """Run the command on a socket that it inherits, until the block ends; yield the port."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as news,
    ):
        news.bind(str(config.parent / "news"))
        news.settimeout(DEADLINE_SECONDS)
        number = listening.fileno()
        script = f'exec 3<&{number}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        process = spawn(
            [
                "bash",
                "-c",
                script,
                "bash",
                command,
                "serve",
                "--config",
                config,
                "--only-if-healthy",
            ],
            env={"NOTIFY_SOCKET": news.getsockname()},
            stderr=subprocess.PIPE,
            pass_fds=[number],
        )
        try:
            assert news.recv(4096) == b"READY=1"
            yield int(listening.getsockname()[1])
            process.terminate()
            _, log = process.communicate(timeout=DEADLINE_SECONDS)
            assert process.returncode == 0, log.decode()
        finally:
            process.kill()
            process.communicate()
