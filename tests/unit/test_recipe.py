"""Recipe files: which are valid, and the file and key of each error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from polydev.errors import ConfigError
from polydev.image.recipe import Recipe, load_recipe

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "recipe.yaml"


def plain() -> dict[str, Any]:
    """The smallest recipe, as YAML gives it."""
    return {
        "name": "small",
        "suite": "bookworm",
        "source_date_epoch": 1,
        "free_space_mib": 0,
        "network": {"address": "10.0.0.2/30", "gateway": "10.0.0.1", "dns": ["10.0.0.3"]},
        "kernel": {"package": "linux", "modules": [], "initrd_modules": [], "cmdline": ["quiet"]},
        "layers": [{"name": "base", "packages": ["systemd"]}, {"name": "tools"}],
    }


def write(folder: Path, data: object, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(data))
    return path


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    return caught.value


def names(recipe: Recipe) -> list[str]:
    return [layer.name for layer in recipe.layers]


def test_golden_recipe_is_valid() -> None:
    recipe = load_recipe(GOLDEN)
    assert names(recipe) == ["base", "desktop", "providers", "agent"]
    assert str(recipe.network.address) == "172.16.0.2/30"
    assert [str(server) for server in recipe.network.dns] == ["8.8.8.8", "8.8.4.4"]


def test_recipe_variables_are_name_and_network(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, plain())).variables() == {
        "name": "small",
        "network": {"address": "10.0.0.2/30", "gateway": "10.0.0.1", "dns": ["10.0.0.3"]},
    }


@pytest.mark.parametrize(
    ("layer", "needs"),
    [
        ({"packages": ["bash"]}, True),
        ({"run": ["true"]}, True),
        ({"enable": ["a.service"]}, True),
        ({"disable": ["a.service"]}, True),
        ({"remove": ["/srv"]}, True),
        ({"mask": ["a.service"], "unpack": ["bash"]}, False),
    ],
)
def test_layer_needs_chroot_only_for_packages_and_commands(
    tmp_path: Path, layer: dict[str, Any], needs: bool
) -> None:
    recipe = plain()
    recipe["layers"][1] |= layer
    assert load_recipe(write(tmp_path, recipe)).layers[1].needs_chroot is needs


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ((), {"colour": "red"}, "colour: there is no such key"),
        (("kernel",), {"modulez": []}, "kernel.modulez: there is no such key"),
        (("layers", 1), {"enabel": []}, "layers[1].enabel: there is no such key"),
        (("layers", 1), {"folder": "/"}, "layers[1].folder: there is no such key"),
        (("layers", 1), {"enable": ["no-suffix"]}, "layers[1].enable[0]: "),
        (("layers", 1), {"mask": ["a.service", "a b.service"]}, "layers[1].mask[1]: "),
        (("layers", 0), {"packages": ["Not A Package"]}, "layers[0].packages[0]: "),
        (("layers", 1), {"remove": ["srv"]}, "layers[1].remove[0]: "),
        (("layers", 1), {"copy": [{"source": ".", "to": "srv"}]}, "layers[1].copy[0].to: "),
        (("layers", 1), {"name": "Tools"}, "layers[1].name: "),
        ((), {"suite": "../../etc/cron.d/x"}, "suite: "),
        ((), {"suite": "--setup-hook=touch"}, "suite: "),
        ((), {"architecture": "amd64/../x"}, "architecture: "),
        ((), {"exclude": ["/usr/*\npath-include=/etc/*"]}, "exclude[0]: "),
        (("kernel",), {"modules": ["../ext4"]}, "kernel.modules[0]: "),
        (("kernel",), {"cmdline": ["quiet\ndebug"]}, "kernel.cmdline[0]: "),
        (("layers", 1), {"run": ["true\0"]}, "layers[1].run[0]: "),
        (("layers", 1), {"files": "files\0"}, "layers[1].files: "),
        (("network",), {"address": "300.0.0.1/30"}, "network.address: "),
        (("network",), {"dns": []}, "network.dns: "),
        (("network",), {"address": 2886729730}, "network.address: must be text"),
        (("network",), {"address": "172.16.0.2"}, "network: address 172.16.0.2 names no network"),
        (("network",), {"address": "172.16.0.3/30"}, "network: address 172.16.0.3 is not one"),
        (("network",), {"gateway": "10.9.9.9"}, "network: gateway 10.9.9.9 must be another host"),
        (("network",), {"gateway": "10.0.0.2"}, "network: gateway 10.0.0.2 must be another"),
        (("network",), {"dns": ["10.0.0.2"]}, "network: dns 10.0.0.2 is not a server"),
        (("layers", 1), {"files": ""}, "layers[1].files: must not be empty"),
        (("layers", 1), {"packages": ["chromium-"]}, "layers[1].packages[0]: "),
        (("layers", 1), {"enable": ["-H.service"]}, "layers[1].enable[0]: "),
        ((), {"free_space_mib": True}, "free_space_mib: must not be true or false"),
        ((), {"source_date_epoch": 2**32}, "source_date_epoch: "),
        ((), {"source_date_epoch": 0}, "source_date_epoch: "),
        ((), {"free_space_mib": "much"}, "free_space_mib: "),
    ],
)
def test_error_names_file_and_key(
    tmp_path: Path, place: tuple[str | int, ...], value: dict[str, Any], told: str
) -> None:
    recipe = plain()
    part: Any = recipe
    for step in place:
        part = part[step]
    part |= value
    path = write(tmp_path, recipe)
    error = refusal(path)
    assert error.message.startswith(f"{path}: {told}")
    assert error.hint
    assert "golden/README.md" in error.hint


@pytest.mark.parametrize(
    "path",
    [
        *("srv", "", "../srv", "/../srv", "/srv/..", "/srv/../../etc", "/srv\n/etc", "/srv\0"),
        *("/dev/null", "/proc/1/root/etc", "/sys", "//dev/./null", "/./proc/self/cwd"),
    ],
)
@pytest.mark.parametrize("key", ["remove[0]", "copy[0].to", "npm.to"])
def test_path_outside_the_image_is_refused(tmp_path: Path, key: str, path: str) -> None:
    recipe = plain()
    recipe["layers"][1] |= {
        "remove[0]": {"remove": [path]},
        "copy[0].to": {"copy": [{"source": ".", "to": path}]},
        "npm.to": {"npm": {"folder": ".", "to": path}},
    }[key]
    file = write(tmp_path, recipe)
    assert refusal(file).message.startswith(f"{file}: layers[1].{key}: must ")


@pytest.mark.parametrize("path", ["/", "//", "/.", "/./"])
def test_removal_of_the_root_is_refused(tmp_path: Path, path: str) -> None:
    recipe = plain()
    recipe["layers"][1]["remove"] = [path]
    assert "must not be the root itself" in refusal(write(tmp_path, recipe)).message


@pytest.mark.parametrize(
    "glob", ["", "/etc/*", "../*", "a/../../*", "**/../../*", "*\n", "*\0", "**.py", "a**"]
)
@pytest.mark.parametrize("key", ["copy[0].glob", "npm.omit[0]"])
def test_glob_outside_its_folder_is_refused(tmp_path: Path, key: str, glob: str) -> None:
    recipe = plain()
    recipe["layers"][1] |= {
        "copy[0].glob": {"copy": [{"source": ".", "glob": glob, "to": "/srv"}]},
        "npm.omit[0]": {"npm": {"folder": ".", "to": "/srv", "omit": [glob]}},
    }[key]
    file = write(tmp_path, recipe)
    assert refusal(file).message.startswith(f"{file}: layers[1].{key}: must ")


@pytest.mark.parametrize(
    ("lock", "told"),
    [
        ('{"packages": {"": {}, "../x/node_modules/y": {}}}', "../x/node_modules/y"),
        ('{"packages": {"node_modules/../../x": {}}}', "node_modules/../../x"),
        ('{"packages": {"/etc/x": {}}}', "/etc/x"),
        ("[]", "is not a lock file of npm"),
        ("{", "is not a lock file of npm"),
    ],
)
def test_npm_lock_with_outside_paths_is_refused(tmp_path: Path, lock: str, told: str) -> None:
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "package-lock.json").write_text(lock)
    recipe = plain()
    recipe["layers"][1]["npm"] = {"folder": ".", "to": "/srv"}
    error = refusal(write(tmp_path, recipe))
    assert error.key == "layers[1] (tools).npm.folder"
    assert told in error.message


@pytest.mark.parametrize("key", ["name", "suite", "network", "kernel", "layers"])
def test_missing_key_is_named(tmp_path: Path, key: str) -> None:
    recipe = plain()
    del recipe[key]
    path = write(tmp_path, recipe)
    assert refusal(path).message == f"{path}: {key}: is missing"


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, plain() | {"colour": "red", "suite": None, "free_space_mib": -1})
    told = refusal(path).message.splitlines()
    assert sorted(line.split(": ")[1] for line in told) == ["colour", "free_space_mib", "suite"]
    assert all(line.startswith(f"{path}: ") for line in told)


@pytest.mark.parametrize("name", ["base", "kernel"])
def test_duplicate_layer_name_is_refused(tmp_path: Path, name: str) -> None:
    recipe = plain()
    recipe["layers"][1]["name"] = name
    error = refusal(write(tmp_path, recipe))
    assert error.key == f"layers[1] ({name}).name"
    assert "another layer has this name" in error.message


@pytest.mark.parametrize(
    ("layer", "key", "missing"),
    [
        ({"files": "tools/files"}, "files", "tools/files"),
        ({"npm": {"folder": "web", "to": "/opt/web"}}, "npm.folder", "web/package-lock.json"),
        ({"copy": [{"source": "gone", "to": "/opt"}]}, "copy[0].source", "gone"),
    ],
)
def test_missing_input_of_a_layer_is_named(
    tmp_path: Path, layer: dict[str, Any], key: str, missing: str
) -> None:
    recipe = plain()
    recipe["layers"][1] |= layer
    error = refusal(write(tmp_path, recipe))
    assert error.key == f"layers[1] (tools).{key}"
    assert error.message.endswith(f"no such file or folder: {tmp_path / missing}")


def test_first_layer_needs_packages(tmp_path: Path) -> None:
    recipe = plain()
    recipe["layers"].reverse()
    assert refusal(write(tmp_path, recipe)).key == "layers[0].packages"


def test_variant_removes_adds_and_replaces(tmp_path: Path) -> None:
    write(tmp_path, plain(), "small.yaml")
    variant = {
        "extends": "small.yaml",
        "name": "other",
        "without": ["tools"],
        "kernel": {"cmdline": ["debug"]},
        "network": {"dns": ["10.0.0.9", "10.0.0.10"]},
        "layers": [{"name": "more"}],
    }
    recipe = load_recipe(write(tmp_path, variant))
    assert (recipe.name, recipe.suite, names(recipe)) == ("other", "bookworm", ["base", "more"])
    assert (recipe.kernel.package, recipe.kernel.cmdline) == ("linux", ["debug"])
    assert str(recipe.network.gateway) == "10.0.0.1"
    assert [str(server) for server in recipe.network.dns] == ["10.0.0.9", "10.0.0.10"]


def test_variant_can_extend_a_variant(tmp_path: Path) -> None:
    write(tmp_path, plain(), "small.yaml")
    write(tmp_path, {"extends": "small.yaml", "layers": [{"name": "more"}]}, "more.yaml")
    path = write(tmp_path, {"extends": "more.yaml", "without": ["tools"]})
    assert names(load_recipe(path)) == ["base", "more"]


def test_paths_are_relative_to_their_own_recipe(tmp_path: Path) -> None:
    base, variant = tmp_path / "base", tmp_path / "variant"
    for folder in (base, variant):
        (folder / "files").mkdir(parents=True)
    recipe = plain()
    recipe["layers"][0]["files"] = "files"
    write(base, recipe)
    path = write(
        variant, {"extends": "../base/recipe.yaml", "layers": [{"name": "own", "files": "files"}]}
    )
    folders = {layer.name: layer.folder for layer in load_recipe(path).layers}
    assert folders == {"base": base, "tools": base, "own": variant}


def test_unknown_layer_in_without_is_refused_with_known_layers(tmp_path: Path) -> None:
    write(tmp_path, plain(), "small.yaml")
    path = write(tmp_path, {"extends": "small.yaml", "without": ["desktop"]})
    error = refusal(path)
    assert error.message == f"{path}: without: no layer named desktop in small.yaml"
    assert error.hint == "its layers: base, tools"


def test_without_key_needs_extends(tmp_path: Path) -> None:
    path = write(tmp_path, plain() | {"without": ["tools"]})
    assert refusal(path).key == "without"


def test_cyclic_variants_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"extends": "recipe.yaml"}, "other.yaml")
    path = write(tmp_path, {"extends": "other.yaml"})
    error = refusal(path)
    assert (error.file, error.key) == (tmp_path / "recipe.yaml", "extends")


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path / "gone.yaml")
    assert error.message == f"{tmp_path / 'gone.yaml'}: cannot be read: No such file or directory"
    assert "--recipe" in str(error.hint)


def test_missing_base_of_a_variant_is_named(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, {"extends": "gone.yaml"})).file == tmp_path / "gone.yaml"


def test_broken_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: small\nlayers:\n  - name: [base\n  - name: tools\n")
    error = refusal(path)
    assert error.key == "line 4"
    assert error.message.startswith(f"{path}: line 4: is not YAML")


@pytest.mark.parametrize("text", ["", "- base\n", "base\n"])
def test_recipe_must_be_a_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert refusal(path).message == f"{path}: must be a mapping of keys"
