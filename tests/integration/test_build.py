"""Real builds: no work twice, no partial results, the same bytes every time.

What is expensive is made once: the `image` fixture has the browser VM's image, and builds that
are disturbed take its lowest layers from the shared cache. A child builds; an audit hook in it
counts what it does to files and processes, and at a chosen count sends itself a signal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import polydev
from polydev.image import file_listing
from polydev.image.build import BuildOptions, BuildResult, build, file_entry
from polydev.image.file_diff import tree_diff
from polydev.image.layer_cache import META
from polydev.image.layer_pruning import STORES
from polydev.image.recipe import load_recipe
from polydev.image.sbom import component
from polydev.image.store import ImageStore
from polydev.image_diff import diff
from polydev.image_layout import BOOT_FILES, INCOMING, ROOTFS, SBOM, TREE
from polydev.image_record import ImageRecord
from polydev.processes import end_group, run, spawn
from polydev.progress import Steps
from polydev.providers import load_providers
from polydev.settings import Settings
from tests.sessions import wait_for

pytestmark = pytest.mark.integration

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "recipe.yaml"
SOURCE = str(Path(polydev.__file__).parent.parent)
OFFLINE = BuildOptions(offline=True)
INTERRUPTED = 130

CHILD = """
import json, os, signal, sys
from pathlib import Path
from polydev.image.build import BuildOptions, build
from polydev.image.recipe import load_recipe
from polydev.image.store import ImageStore
from polydev.progress import Steps
from polydev.settings import Settings

recipe, place, sent, moment = sys.argv[1:]
folder = Path(place)
settings = Settings(folder / "store", folder / "cache", folder / "state")
seen = 0
COUNTED = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.truncate", "subprocess.Popen"}

def observe(event, arguments):
    global seen
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
    if event in COUNTED or writes:
        seen += 1
        if str(seen) == moment:
            os.kill(os.getpid(), int(sent))

# SIGINT is ignored if the tests run in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.addaudithook(observe)
try:
    result = build(
        load_recipe(Path(recipe)), settings, ImageStore(settings.store), Steps(),
        BuildOptions(offline=True),
    )
except KeyboardInterrupt:
    sys.exit(130)
print(json.dumps({"digest": result.record.digest, "changed": result.changed, "seen": seen}))
"""


@dataclass(frozen=True)
class Workplace:
    """A store and a cache of one test; the cache has the layers of the image."""

    folder: Path
    recipe: Path

    @property
    def store(self) -> ImageStore:
        return ImageStore(self.folder / "store")

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def argv(self, sent: int = 0, moment: int = 0) -> list[str]:
        words = [self.recipe, self.folder, int(sent), moment]
        return [sys.executable, "-c", CHILD, *(str(word) for word in words)]

    def build(self) -> dict[str, Any]:
        """Build in a child process without interruption."""
        answer: dict[str, Any] = json.loads(run(self.argv(), env=ENVIRONMENT).stdout)
        return answer

    def disturbed_build(self, sent: int, moment: int) -> int:
        """Build in a child process that gets a signal; return its exit status."""
        return run(self.argv(sent, moment), env=ENVIRONMENT, check=False).status


ENVIRONMENT = {"PYTHONPATH": SOURCE}


def workplace(folder: Path, recipe: Path, settings: Settings, image: ImageRecord) -> Workplace:
    layers = folder / "cache" / "layers"
    layers.mkdir(parents=True)
    (folder / "cache" / "apt").symlink_to(settings.cache / "apt")
    for layer in image.layers:
        (layers / layer.id).symlink_to(settings.cache / "layers" / layer.id)
    return Workplace(folder, recipe)


def variant(folder: Path, **keys: Any) -> Path:
    """A recipe that extends the browser VM's by a layer `more` with one file."""
    (folder / "files/etc").mkdir(parents=True)
    (folder / "files/etc/polydev-more").write_text("more\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"extends": str(GOLDEN), "name": "more", **keys}))
    return recipe


@pytest.fixture(scope="module")
def extended(
    tmp_path_factory: pytest.TempPathFactory,
    settings: Settings,
    store: ImageStore,
    image: ImageRecord,
) -> BuildResult:
    """The whole image with one layer of one file on top."""
    recipe = variant(
        tmp_path_factory.mktemp("extended"), layers=[{"name": "more", "files": "files"}]
    )
    return build(load_recipe(recipe), settings, store, Steps(), OFFLINE)


@pytest.fixture(scope="module")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base and kernel, a layer made by a command inside them, and one of a file."""
    return variant(
        tmp_path_factory.mktemp("small"),
        without=["desktop", "providers", "agent"],
        free_space_mib=16,
        layers=[
            {"name": "inside", "run": ["useradd --uid 1234 somebody", "date >/tmp/now"]},
            {"name": "more", "files": "files"},
        ],
    )


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe: Path,
    settings: Settings,
    image: ImageRecord,
) -> dict[str, Any]:
    """Return the result of the small recipe without interruptions."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return workplace(folder, small_recipe, settings, image).build()


@pytest.fixture
def place(
    tmp_path: Path, small_recipe: Path, settings: Settings, image: ImageRecord
) -> Iterator[Workplace]:
    place = workplace(tmp_path / "place", small_recipe, settings, image)
    yield place
    assert mounts_below(place.folder) == []


def mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(str(folder))]


def processes_that_name(folder: Path) -> list[str]:
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes()
        except OSError:  # it has just ended
            continue
        if os.fsencode(folder) in words:
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def assert_all_whole(place: Workplace) -> None:
    """Check that every image and layer that can be found is complete."""
    for digest in place.store.digests():
        record = place.store.record(digest)
        for name in BOOT_FILES:
            assert file_entry(place.store.path(digest) / name).sha256 == record.files[name].sha256
    for layer in (place.cache / "layers").iterdir():
        if not layer.is_symlink() and not layer.name.startswith("."):
            assert file_listing.read_listing(layer / TREE) == list(
                file_listing.list_tree(layer / "tree")
            )


def test_second_build_changes_nothing(
    settings: Settings, store: ImageStore, image: ImageRecord
) -> None:
    again = build(load_recipe(GOLDEN), settings, store, Steps(), OFFLINE)
    assert not again.changed
    assert again.record.digest == image.digest
    assert again.record.created_at == store.record(image.digest).created_at


def test_variant_builds_only_its_own_layer(extended: BuildResult, image: ImageRecord) -> None:
    assert extended.changed
    assert {layer.name for layer in extended.record.layers if layer.seconds is not None} <= {"more"}
    ids = {layer.name: layer.id for layer in extended.record.layers}
    assert ids.pop("more")
    assert ids == {layer.name: layer.id for layer in image.layers}


def test_diff_of_variant_shows_only_its_file(
    extended: BuildResult, store: ImageStore, image: ImageRecord
) -> None:
    files = tree_diff(store.path(image.digest), store.path(extended.record.digest))
    found = diff(image, extended.record, files)
    assert found.files is not None
    assert (found.files.added, found.files.removed) == (["/etc/polydev-more"], [])
    assert [layer.name for layer in found.layers_changed] == ["more"]
    assert found.content_change_bytes == len("more\n")
    assert "+ /etc/polydev-more" in found.as_text().splitlines()


def test_root_filesystem_is_sound(store: ImageStore, image: ImageRecord) -> None:
    checked = run(["e2fsck", "-fn", store.path(image.digest) / ROOTFS], check=False)
    assert checked.status == 0, checked.stdout + checked.stderr


def test_bill_of_materials_names_every_package(store: ImageStore, image: ImageRecord) -> None:
    bom = json.loads((store.path(image.digest) / SBOM).read_text())
    suite = load_recipe(GOLDEN).suite
    expected = {str(component(package, suite).purl) for package in image.packages}
    assert {each["purl"] for each in bom["components"]} == expected
    assert {package.kind for package in image.packages} == {"deb", "npm"}


def test_packages_of_all_layers_are_recorded(image: ImageRecord) -> None:
    names = {package.name for package in image.packages}
    assert {"systemd", "chromium", "novnc", "@openai/codex"} <= names


def test_image_record_has_providers_of_recipe(image: ImageRecord) -> None:
    assert image.providers == load_providers(GOLDEN.parent / "providers")


def test_small_image_has_same_digest_in_another_folder(
    place: Workplace, undisturbed: dict[str, Any]
) -> None:
    assert place.build()["digest"] == undisturbed["digest"]
    again = place.build()
    assert (again["digest"], again["changed"]) == (undisturbed["digest"], False)


def test_build_without_cache_gives_same_digest(
    place: Workplace, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty cached layers would give an empty image.

    The bytes do not depend on the environment and umask of the build either.
    """
    other_way = "" if os.environ.get("PYTHONDONTWRITEBYTECODE") else "1"
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", other_way)
    monkeypatch.setenv("SYSTEMD_OFFLINE", "0")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    before = os.umask(0o077)
    layers = place.cache / "layers"
    for cached in list(layers.iterdir()):
        meta = (cached / META).read_text()
        cached.unlink()
        cached.mkdir()
        (cached / META).write_text(meta)
    settings = Settings(place.store.root, place.cache, place.folder / "state")
    options = BuildOptions(offline=True, no_cache=True)
    try:
        afresh = build(load_recipe(place.recipe), settings, place.store, Steps(), options)
    finally:
        os.umask(before)
    assert afresh.made == tuple(layer.name for layer in afresh.record.layers)
    assert afresh.record.digest == undisturbed["digest"]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.45, 0.7, 0.95])
def test_killed_build_leaves_no_partial_layers_or_images(
    place: Workplace, undisturbed: dict[str, Any], share: float
) -> None:
    moment = 1 + int(share * undisturbed["seen"])
    assert place.disturbed_build(signal.SIGKILL, moment) == -signal.SIGKILL
    assert mounts_below(place.folder) == []
    assert_all_whole(place)
    assert place.build()["digest"] == undisturbed["digest"]
    assert place.store.digests() == [undisturbed["digest"]]
    assert (place.cache / STORES).read_text() == f"{place.store.root}\n"
    place.store.prune(keep=9)
    assert list((place.store.root / INCOMING).iterdir()) == []


@pytest.mark.parametrize("share", [0.2, 0.45, 0.7])
def test_interrupted_build_leaves_nothing_behind(
    place: Workplace, undisturbed: dict[str, Any], share: float
) -> None:
    moment = 1 + int(share * undisturbed["seen"])
    assert place.disturbed_build(signal.SIGINT, moment) == INTERRUPTED
    assert mounts_below(place.folder) == []
    # A killed process ends once what it waits for on the disk is done.
    wait_for("the end of all that it started", lambda: not processes_that_name(place.cache))
    assert_all_whole(place)
    assert list((place.store.root).glob(f"{INCOMING}/*")) == []
    assert place.build()["digest"] == undisturbed["digest"]


def test_concurrent_builds_build_once_and_agree(
    place: Workplace, undisturbed: dict[str, Any]
) -> None:
    with building(place) as first, building(place) as second:
        answers = [json.loads(process.communicate()[0]) for process in (first, second)]
    assert [answer["digest"] for answer in answers] == [undisturbed["digest"]] * 2
    assert sorted(answer["changed"] for answer in answers) == [False, True]


@contextmanager
def building(place: Workplace) -> Iterator[subprocess.Popen[bytes]]:
    process = spawn(place.argv(), env=ENVIRONMENT, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        end_group(process)
