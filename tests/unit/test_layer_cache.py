"""Installation of a layer's packages: into its tree, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polydev.errors import BuildError, CommandError
from polydev.image import layer_cache
from polydev.image.apt import recipe_archive
from polydev.image.file_listing import read_listing
from polydev.image.guest_paths import LayerConflict
from polydev.image.layer_cache import LayerCache, remove_layer
from polydev.image.recipe import load_recipe
from polydev.image.sandbox_program import REFUSED

RECIPE = Path(__file__).resolve().parents[2] / "golden" / "recipe.yaml"


def test_apt_installs_into_the_tree_only(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    archive = recipe_archive(tmp_path / "apt", recipe)
    argv = LayerCache(tmp_path / "layers", archive, recipe)._install_argv(tmp_path, ["chromium"])
    options = {argv[at + 1] for at, word in enumerate(argv) if word == "-o"}
    assert {
        f"Dir::State::status={tmp_path}/var/lib/dpkg/status",
        f"Dir::State::extended_states={tmp_path}/var/lib/apt/extended_states",
        f"Dir::Cache::archives={tmp_path}/var/cache/apt/archives",
        f"DPkg::Chroot-Directory={tmp_path}",
    } <= options
    assert set(archive.options()) <= set(argv)
    assert argv[-3:] == ["-y", "install", "chromium"]


class Building:
    """A layer of one file, made without apt and mounts; `log` records the steps."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.scratch = folder / "scratch"
        self.plan: Any = SimpleNamespace(
            id="abc", name="web", layer=None, debs=(), unpacked=(), below=()
        )
        recipe: Any = SimpleNamespace(source_date_epoch=100)
        archive: Any = SimpleNamespace()
        self.cache = LayerCache(folder / "layers", archive, recipe)
        self.makes: Callable[[Path], object] = lambda tree: (tree / "file").write_text("text")
        rename = Path.rename

        def renamed(path: Path, to: Path) -> Path:
            self.log.append(f"{path.name} becomes {to.name}")
            return rename(path, to)

        patch.setattr(self.cache, "_make", self._make)
        patch.setattr(
            layer_cache, "run", lambda argv: self.log.append(" ".join(map(str, argv[:2])))
        )
        patch.setattr(layer_cache, "sync", lambda path: self.log.append(f"sync {path.name}"))
        patch.setattr(Path, "rename", renamed)

    def _make(self, plan: object, made: Path, scratch: Path, step: object) -> list[Any]:
        self.makes(made / "tree")
        return []

    def build(self) -> layer_cache.BuiltLayer:
        step: Any = SimpleNamespace(say=lambda _: None)
        return self.cache.build(self.plan, self.scratch, step)


@pytest.fixture
def building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Building:
    return Building(tmp_path, monkeypatch)


NAMED = ["sync --file-system", "layer becomes abc", "sync layers"]


def test_layer_is_synced_before_its_rename(building: Building) -> None:
    assert building.cache.find(building.plan) is None
    made = building.build()
    assert building.log == NAMED
    assert made.seconds is not None
    found = building.cache.find(building.plan)
    assert found is not None
    assert (found.folder, found.packages, found.seconds) == (made.folder, made.packages, None)
    assert (found.tree / "file").read_text() == "text"
    assert (found.tree / "file").stat().st_mtime == 100
    assert json.loads((found.folder / layer_cache.META).read_text())["name"] == "web"
    assert [each["path"] for each in read_listing(found.folder / "tree.jsonl.gz")]


def test_rebuilt_layer_replaces_the_old_one(building: Building) -> None:
    first = building.build()
    (first.tree / "old").touch()
    building.log.clear()
    building.scratch = building.scratch.with_name("again")
    second = building.build()
    assert building.log == ["abc becomes .abc.gone", "sync layers", *NAMED]
    assert sorted(path.name for path in second.tree.iterdir()) == ["file"]
    assert [path.name for path in building.cache.folder.iterdir()] == ["abc"]


def test_interrupted_removal_is_completed_by_the_next(building: Building) -> None:
    made = building.build()
    left = made.folder.with_name(".abc.gone")
    left.mkdir()
    (left / "part").touch()
    remove_layer(made.folder)
    assert list(building.cache.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LayerConflict("/etc is a file"), "layer web does not fit the image: /etc is a file"),
        (
            CommandError(["sh"], 1, f"more\n{REFUSED}/etc is a file"),
            "layer web does not fit the image: /etc is a file",
        ),
        (
            CommandError(["/usr/bin/npm"], 7, "no network"),
            "cannot build layer web: npm exited with status 7:\nno network",
        ),
    ],
)
def test_failed_layer_is_not_in_the_cache(error: Exception, said: str, building: Building) -> None:
    def fail(_: Path) -> None:
        raise error

    building.makes = fail
    with pytest.raises(BuildError) as told:
        building.build()
    assert told.value.message == said
    assert building.log == []
    assert building.cache.find(building.plan) is None


def test_log_of_an_earlier_build_is_removed(building: Building) -> None:
    log = building.cache.log_file(building.plan)
    log.parent.mkdir()
    log.write_text("of an earlier one")
    building.build()
    assert not log.exists()
