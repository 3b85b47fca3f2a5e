"""Releases of real wheels: installed by pip, or with packages copied from another release."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polydev.hosttool import release_venv
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import file_sha256
from polydev.hosttool.paths import Paths
from polydev.hosttool.release_files import FILES, release_damage
from polydev.hosttool.releases import create
from polydev.processes import run

FIRST, SECOND, THIRD, FOURTH = (f"2025013{day}_120000-abcd" for day in range(4))


class Deliveries:
    """Wheels and requirements as uploaded to a host, and the programs run to install them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = Paths.below(root / "state")
        self.ran: list[str] = []
        (root / "wheels").mkdir(parents=True)

    def deliver(self, release: str, **versions: str) -> Path:
        """Upload the requirements of a release and the wheels that they name."""
        arrived = self.root / "incoming" / release
        arrived.mkdir(parents=True, exist_ok=True)
        pins = {name.replace("_", "-"): version for name, version in versions.items()}
        lines = [
            f"{name}=={version} {self._wheel(name, version)}\n" for name, version in pins.items()
        ]
        (arrived / "requirements.txt").write_text("".join(lines))
        return arrived

    def _wheel(self, name: str, version: str) -> str:
        plain = name.replace("-", "_")
        module = "polydev" if plain.startswith("polydev") else plain
        info = f"{plain}-{version}.dist-info"
        script = f"[console_scripts]\nmaster-controller = {module}:main\n"
        files = {
            f"{module}/__init__.py": f"version = {version!r}\ndef main(): print(version)\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": script if module == "polydev" else "",
        }
        wheel = self.root / "wheels" / f"{plain}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in files.items():
                archive.writestr(zipfile.ZipInfo(path), text)
            record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
            archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), record)
        return f"--hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"

    def create(self, release: str) -> Path:
        self.ran.clear()
        said = create(release, "a" * 64, "abcd", self.paths, self.root, sys.executable)
        place = self.root / "releases" / release
        assert json.loads((place / "release.json").read_text()) == said
        assert (said["id"], said["digest"], said["commit"]) == (release, "a" * 64, "abcd")
        return place

    @property
    def was_copied(self) -> bool:
        return not any("ensurepip" in line for line in self.ran)


@pytest.fixture(scope="module")
def deliveries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deliveries]:
    made = Deliveries(tmp_path_factory.mktemp("controller"))
    real = release_venv.run

    def recorded(argv: list[str]) -> None:
        made.ran.append(" ".join(argv))
        real(argv)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release_venv, "run", recorded)
        yield made


@pytest.fixture(scope="module")
def first(deliveries: Deliveries) -> Path:
    arrived = deliveries.deliver(FIRST, polydev_controller="1.0", other="1.0")
    place = deliveries.create(FIRST)
    assert not deliveries.was_copied
    assert not arrived.exists()
    return place


def versions(place: Path) -> tuple[str, str]:
    """Versions of our package, by its program, and of the other one."""
    said = run([place / "venv/bin/python", "-Ic", "import other; print(other.version)"]).stdout
    return run([place / "venv/bin/master-controller"]).stdout.strip(), said.strip()


def file_of_other(place: Path) -> Path:
    (found,) = place.glob("venv/lib/python3*/site-packages/other/__init__.py")
    return found


def test_release_has_required_package_versions(first: Path) -> None:
    assert versions(first) == ("1.0", "1.0")
    known = json.loads((first / "release.json").read_text())
    assert (known["id"], known["digest"], known["commit"]) == (FIRST, "a" * 64, "abcd")
    assert release_damage(first, file_sha256(first / FILES)) == []


def test_unchanged_packages_are_copied_from_another_release(
    deliveries: Deliveries, first: Path
) -> None:
    deliveries.deliver(SECOND, polydev_controller="2.0", other="1.0")
    second = deliveries.create(SECOND)
    assert deliveries.was_copied
    assert versions(second) == ("2.0", "1.0")
    assert versions(first) == ("1.0", "1.0")
    infos = {path.name for path in second.glob("venv/lib/python3*/site-packages/*.dist-info")}
    assert {"other-1.0.dist-info", "polydev_controller-2.0.dist-info"} <= infos
    assert "polydev_controller-1.0.dist-info" not in infos
    # They are copies, not links, so an edit of one release does not change the other.
    assert file_of_other(second).stat().st_ino != file_of_other(first).stat().st_ino
    assert release_damage(second, file_sha256(second / FILES)) == []


@pytest.mark.parametrize("breaks", ["hash", "missing"])
def test_failed_installation_is_not_marked_complete(
    deliveries: Deliveries, first: Path, breaks: str
) -> None:
    deliveries.deliver(THIRD, polydev_controller="3.0", other="1.0")
    wheel = deliveries.root / "wheels" / "polydev_controller-3.0-py3-none-any.whl"
    whole = wheel.read_bytes()
    if breaks == "hash":
        wheel.write_bytes(whole + b"more")
    else:
        wheel.unlink()
    with pytest.raises(HostError, match="polydev") as failure:
        deliveries.create(THIRD)
    assert failure.value.code == "release-failed"
    assert not (deliveries.root / "releases" / THIRD / "release.json").exists()
    wheel.write_bytes(whole)
    assert versions(deliveries.create(THIRD)) == ("3.0", "1.0")


def test_changed_packages_are_installed_by_pip(deliveries: Deliveries, first: Path) -> None:
    deliveries.deliver(FOURTH, polydev_controller="2.0", other="1.1")
    fourth = deliveries.create(FOURTH)
    assert not deliveries.was_copied
    assert versions(fourth) == ("2.0", "1.1")


def _lose(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


@pytest.mark.parametrize(
    "damage",
    [
        _lose("files.jsonl"),
        _lose("requirements.txt"),
        _lose("venv/pyvenv.cfg"),
        _lose("venv/bin/master-controller"),
        lambda place: file_of_other(place).write_text("version = 'another'\n"),
        lambda place: file_of_other(place).chmod(0o600),
        lambda place: file_of_other(place).with_name("x.pth").touch(),
    ],
)
def test_packages_are_not_copied_from_damaged_release(
    deliveries: Deliveries, first: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """The former release is alone in the folder of releases."""
    place = tmp_path / "releases" / FIRST
    shutil.copytree(first, place, symlinks=True)
    requirements = tmp_path / "requirements.txt"
    shutil.copy(first / "requirements.txt", requirements)
    same = release_venv._release_with_same_packages
    assert same(requirements, first / "venv", tmp_path) == place
    damage(place)
    assert same(requirements, first / "venv", tmp_path) is None
