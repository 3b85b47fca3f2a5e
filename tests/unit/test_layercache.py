"""How a layer's packages are installed: into its tree, and nowhere else."""

from __future__ import annotations

from pathlib import Path

from polydev.image.apt import recipe_archive
from polydev.image.layercache import LayerCache
from polydev.image.recipe import load_recipe

RECIPE = Path(__file__).resolve().parents[2] / "golden" / "recipe.yaml"


def test_apt_installs_into_the_tree_and_not_into_this_machine(tmp_path: Path) -> None:
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
