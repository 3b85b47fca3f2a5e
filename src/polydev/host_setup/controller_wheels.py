"""The bundle: all Python packages that a host needs to run the controller, without an index.

checkout --source_digest--> digest        checkout --make_bundle--> Bundle

It consists of our wheel, the same bytes for the same sources, with the scripts and styles of others
that its pages load, and of the wheels that requirements/controller.txt locks for the host's Python.
Both are cached by the hash of their inputs, in folders that appear only when they are complete.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from polydev.errors import BuildError, CommandError, ConfigError
from polydev.host_setup import web_assets
from polydev.host_setup.atomic_folder import atomic_folder
from polydev.processes import Argument, run
from polydev.progress import Steps

PYTHON_VERSIONS = ("3.10", "3.11", "3.12", "3.13")
LOCK = Path("requirements/controller.txt")
PACKAGE = Path("src/polydev")
# The controller and all that it may import. A change elsewhere makes no new release.
RELEASED = (
    "__init__.py",
    "controller",
    "deployment_records.py",
    "file_checksum.py",
    "durable_files.py",
    "errors.py",
    "host_layout.py",
    "image_diff.py",
    "image_layout.py",
    "image_record.py",
    "json_text.py",
    "processes.py",
    "providers.py",
    "settings.py",
    "validation.py",
    "vm",
    "yaml_files.py",
)
DISTRIBUTION = "polydev-controller"
# A distribution with commands of its own; the bundle's requirements have its dependencies. The
# version names the sources, so that wheels of one name are equal on a host.
PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "{version}"
description = "The controller of a host of browser VMs"
requires-python = ">=3.10"

[project.scripts]
master-controller = "polydev.controller.__main__:main"
polydev-microvm = "polydev.vm.launch:main"
polydev-accelerator = "polydev.vm.accelerator:main"
polydev-template-holder = "polydev.vm.template_holder:main"

[tool.setuptools.packages.find]
where = ["src"]

[tool.setuptools.package-data]
"polydev.controller.web" = ["**/*"]
"""
BUILD_WHEEL = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
# Any fixed time, so that every build gives the same bytes.
BUILD_ENVIRONMENT = {"SOURCE_DATE_EPOCH": "1577836800", "PYTHONDONTWRITEBYTECODE": "1"}
# Debian 12 has glibc 2.36 and Ubuntu 22.04 has 2.35; wheels for older ones run there too.
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(35, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)


@dataclass(frozen=True)
class Wheel:
    """A wheel file in the cache."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """The files that a release is installed from.

    `digest` names the sources. `requirements` installs exactly `wheels`, by
    `pip install --no-index --find-links DIR --require-hashes -r requirements.txt`.
    """

    digest: str
    python_version: str
    wheels: tuple[Wheel, ...]
    requirements: str


@dataclass(frozen=True)
class Pin:
    """One line of the lock: a package, its version, and the hashes of its permitted files."""

    name: str
    version: str
    hashes: tuple[str, ...]

    def line(self) -> str:
        return " ".join([f"{self.name}=={self.version}", *(f"--hash={h}" for h in self.hashes)])


def source_digest(root: Path) -> str:
    """Return the hash of all inputs of a release in the checkout at `root`; builds nothing.

    Raises ConfigError if one of the files is missing.
    """
    return _digest(root, _all_sources(root))


def _digest(root: Path, files: Iterable[Path]) -> str:
    total = hashlib.sha256(PYPROJECT.encode())
    for file in files:
        total.update(f"{hashlib.sha256(_content(root / file)).hexdigest()}  {file}\n".encode())
    return total.hexdigest()


def vm_digest(root: Path) -> str:
    """Return the hash of the code that runs VMs: `polydev.vm` and its dependencies.

    Raises ConfigError.
    """
    return _digest(
        root,
        _sources(
            root,
            (
                "file_checksum.py",
                "durable_files.py",
                "errors.py",
                "host_layout.py",
                "image_layout.py",
                "processes.py",
                "vm",
            ),
        ),
    )


def make_bundle(root: Path, cache: Path, python_version: str, steps: Steps) -> Bundle:
    """Return the bundle of the checkout at `root`, for hosts with `python_version` ("3.11").

    Raises ConfigError (that Python is not supported, the lock cannot be read) or BuildError.
    """
    if python_version not in PYTHON_VERSIONS:
        raise ConfigError(
            f"the controller does not run on Python {python_version}",
            f"give the host one of {', '.join(PYTHON_VERSIONS)}",
        )
    pins = locked_pins(_content(root / LOCK).decode(), python_version, root / LOCK)
    digest = source_digest(root)
    version = f"{_package_version(root)}+{digest[:16]}"
    ours = _own_wheel(root, cache, digest, version, steps)
    theirs = _wheelhouse(cache / "controller" / "wheelhouse", pins, python_version, steps)
    exact = [Pin(DISTRIBUTION, version, (f"sha256:{ours.sha256}",)), *_exact_pins(pins, theirs)]
    return Bundle(digest, python_version, (ours, *theirs), requirements_text(exact))


def locked_pins(lock: str, python_version: str, file: Path = LOCK) -> list[Pin]:
    """Return the packages that the lock has for one Python on Linux. Raises ConfigError."""
    lines = [line for line in lock.splitlines() if not line.lstrip().startswith("#")]
    logical = re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()
    found = (_pin(line, python_version, file) for line in logical if line.strip())
    return [pin for pin in found if pin is not None]


def _pin(line: str, python_version: str, file: Path) -> Pin | None:
    words, *hashes = re.split(r"\s+--hash=", line.strip())
    try:
        requirement = Requirement(words)
    except InvalidRequirement as error:
        raise ConfigError(f"cannot read this requirement: {words}", file=file) from error
    # pip evaluates markers for the Python that it runs on, whatever --python-version says.
    target = {
        "python_version": python_version,
        "python_full_version": f"{python_version}.0",
        "implementation_name": "cpython",
        "platform_machine": "x86_64",
        "sys_platform": "linux",
    }
    if requirement.marker and not requirement.marker.evaluate(target):
        return None
    version = re.fullmatch(r"==([^*,]+)", str(requirement.specifier))
    if version is None or not hashes:
        raise ConfigError("needs == with a version, and hashes", file=file, key=requirement.name)
    return Pin(requirement.name, version[1], tuple(each.strip() for each in hashes))


def requirements_text(pins: Iterable[Pin]) -> str:
    return "".join(f"{pin.line()}\n" for pin in pins)


def _exact_pins(pins: Iterable[Pin], wheels: Iterable[Wheel]) -> list[Pin]:
    """Return the pins, each with the hash of its file in the bundle only."""
    by_name = {str(parse_wheel_filename(wheel.path.name)[0]): wheel for wheel in wheels}
    return [
        Pin(pin.name, pin.version, (f"sha256:{by_name[canonicalize_name(pin.name)].sha256}",))
        for pin in pins
    ]


def _all_sources(root: Path) -> list[Path]:
    return [*_sources(root, RELEASED), *web_assets.SOURCES]


def _sources(root: Path, parts: Iterable[str]) -> list[Path]:
    package = root / PACKAGE
    inside = [file for part in parts for file in [package / part, *(package / part).rglob("*")]]
    files = [file for file in inside if file.is_file() and "__pycache__" not in file.parts]
    return [*sorted(file.relative_to(root) for file in files), LOCK]


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=file) from error


def _package_version(root: Path) -> str:
    file = root / PACKAGE / "__init__.py"
    found = re.search(r'^__version__ = "([^"]+)"$', _content(file).decode(), re.MULTILINE)
    if found is None:
        raise ConfigError("has no version", file=file, key="__version__")
    return found[1]


def _own_wheel(root: Path, cache: Path, digest: str, version: str, steps: Steps) -> Wheel:
    made = cache / "controller" / "own" / digest
    if not made.is_dir():
        packages = web_assets.node_modules(root, cache, steps)
        with steps.step("controller's wheel"), atomic_folder(made) as scratch:
            _build_wheel(root, packages, scratch, digest, version)
    return _wheels_in(made)[0]


def _build_wheel(root: Path, packages: Path, target: Path, digest: str, version: str) -> None:
    with TemporaryDirectory(prefix="polydev-wheel-") as name:
        copy = Path(name)
        for file in _all_sources(root):
            made = copy / file
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_bytes(_content(root / file))
            made.chmod(0o644)  # the wheel stores modes, which depend on a checkout's umask
        if source_digest(copy) != digest:
            raise BuildError("the sources changed while they were read", "run ./inv deploy again")
        web_assets.pack(copy, packages, copy / web_assets.PLACE)
        pyproject = PYPROJECT.format(name=DISTRIBUTION, version=version)
        (copy / "pyproject.toml").write_text(pyproject)
        _run_python(
            ["-c", BUILD_WHEEL, target],
            "cannot build the controller's wheel",
            cwd=copy,
            env=BUILD_ENVIRONMENT,
        )


def _wheelhouse(
    folder: Path, pins: list[Pin], python_version: str, steps: Steps
) -> tuple[Wheel, ...]:
    text = requirements_text(pins)
    house = folder / hashlib.sha256(f"{python_version}\n{text}".encode()).hexdigest()
    if house.is_dir() and not _is_whole(house, pins):
        shutil.rmtree(house)
    if not house.is_dir():
        label = f"controller's packages for Python {python_version}"
        with steps.step(label) as step, atomic_folder(house) as scratch:
            step.say(f"{len(pins)} wheels")
            _download(text, scratch, python_version)
    return _wheels_in(house)


def _is_whole(house: Path, pins: list[Pin]) -> bool:
    wheels = {f"sha256:{wheel.sha256}" for wheel in _wheels_in(house)}
    return len(wheels) == len(pins) and all(wheels & set(pin.hashes) for pin in pins)


def _download(requirements: str, target: Path, python_version: str) -> None:
    with TemporaryDirectory(prefix="polydev-wheels-") as name:
        file = Path(name, "requirements.txt")
        file.write_text(requirements)
        _run_python(
            pip_download_words(file, target, python_version),
            f"cannot download the controller's packages for Python {python_version}",
        )


def pip_download_words(requirements: Path, target: Path, python_version: str) -> list[Argument]:
    """Return the arguments of `python` that download wheels for another Python version."""
    return [
        *("-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"),
        *("--require-hashes", "--no-deps", "--only-binary", ":all:"),
        *("--implementation", "cp", "--python-version", python_version),
        *(word for platform in PLATFORMS for word in ("--platform", platform)),
        *("--dest", target, "--requirement", requirements),
    ]


def _run_python(
    words: list[Argument],
    failure: str,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    try:
        run([sys.executable, *words], cwd=cwd, env=env)
    except CommandError as error:
        raise BuildError(f"{failure}:\n{error.stderr_tail}") from error


def _wheels_in(folder: Path) -> tuple[Wheel, ...]:
    return tuple(
        Wheel(file, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in sorted(folder.glob("*.whl"))
    )
