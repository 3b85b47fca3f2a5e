"""The inputs of a layer's id: plans of a small recipe, nothing built."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from polydev.errors import ConfigError
from polydev.image.apt import Archive, Deb
from polydev.image.layer_cache import remove_layer
from polydev.image.layer_plans import (
    GuestFile,
    LayerPlan,
    chroot_script,
    drop_matches,
    guest_files,
    plan_layers,
    write_staging,
)
from polydev.image.recipe import load_recipe
from tests.diskwork import watched_disk

RECIPE = """
name: small
suite: bookworm
source_date_epoch: 1000
free_space_mib: 16
network: {address: 10.0.0.2/30, gateway: 10.0.0.1, dns: [10.0.0.3]}
kernel:
  package: linux-image-amd64
  modules: [virtio_net]
  initrd_modules: [ext4]
  cmdline: [quiet]
exclude: [/usr/share/doc/*]
layers:
  - {name: base, packages: [systemd], files: base, run: ["true"]}
  - {name: desktop, packages: [tigervnc], unpack: [novnc], enable: [vnc.service]}
  - {name: settings, files: settings, mask: [dbus.service]}
  - {name: web, npm: {folder: web, to: /opt/web, omit: [docs]}}
  - {name: agent, copy: [{source: agent, glob: "*.py", to: /usr/lib/agent}], run: ["true"]}
"""
NAMES = ("base", "kernel", "desktop", "settings", "web", "agent")
TOOLS = {"mmdebstrap": "1", "cpio": "2"}
NEEDS = {
    "systemd": ["libc6"],
    "tigervnc": ["libc6", "libx11"],
    "linux-image-amd64": ["linux-image-6.1"],
}


class PinnedArchive(Archive):
    """An archive with given package versions and without files."""

    def __init__(self, versions: dict[str, str]) -> None:
        super().__init__(Path("/nowhere"), "bookworm", "amd64")
        self.versions = versions

    def resolve(self, packages: Sequence[str]) -> list[Deb]:
        names = dict.fromkeys(
            name for package in packages for name in (*NEEDS.get(package, []), package)
        )
        return [self._deb(name) for name in names]

    def locate(self, packages: Sequence[str]) -> list[Deb]:
        return [self._deb(name) for name in packages]

    def _deb(self, name: str) -> Deb:
        version = self.versions.get(name, "1.0")
        sha256 = hashlib.sha256(f"{name} {version}".encode()).hexdigest()
        return Deb(name, version, f"{name}_{version}_amd64.deb", sha256, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout with the recipe above and its files."""
    folder = tmp_path / "checkout"
    texts = {
        "recipe.yaml": RECIPE,
        "base/etc/hostname": "guest\n",
        "settings/etc/plain.conf": "a = 1\n",
        "settings/etc/resolv.conf.j2": "{% for server in network.dns %}{{ server }}\n{% endfor %}",
        "web/package.json": "{}",
        "web/package-lock.json": '{"lockfileVersion": 3}',
        "agent/main.py": "print()\n",
        "agent/notes.txt": "not copied\n",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def plans(folder: Path, **versions: str) -> list[LayerPlan]:
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    return plan_layers(load_recipe(folder / "recipe.yaml"), PinnedArchive(named), TOOLS)


def ids(folder: Path, **versions: str) -> dict[str, str]:
    return {plan.name: plan.id for plan in plans(folder, **versions)}


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def replace_in(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def in_recipe(old: str, new: str) -> Callable[[Path], None]:
    return replace_in("recipe.yaml", old, new)


def make_executable(folder: Path) -> None:
    (folder / "settings/etc/plain.conf").chmod(0o755)


def become_a_link(folder: Path) -> None:
    path = folder / "settings/etc/plain.conf"
    path.unlink()
    path.symlink_to("other.conf")


def rename_a_file(folder: Path) -> None:
    path = folder / "settings/etc/plain.conf"
    path.rename(path.with_name("other.conf"))


def test_layers_come_lowest_first_with_the_kernel_above_the_first(folder: Path) -> None:
    assert [plan.name for plan in plans(folder)] == list(NAMES)


def test_same_inputs_give_the_same_ids(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    assert ids(folder) == ids(elsewhere)
    assert len(set(ids(folder).values())) == len(NAMES)


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        # Layers built inside those below change with them; layers of files alone do not.
        (replace_in("base/etc/hostname", "guest", "host"), {"base", "desktop", "agent"}),
        (in_recipe('files: base, run: ["true"]', "files: base"), {"base", "desktop", "agent"}),
        (in_recipe("enable: [vnc.service]", "disable: [vnc.service]"), {"desktop", "agent"}),
        (in_recipe("unpack: [novnc]", "unpack: [novnc, x11vnc]"), {"desktop", "agent"}),
        (replace_in("settings/etc/plain.conf", "a = 1", "a = 2"), {"settings"}),
        (make_executable, {"settings"}),
        (become_a_link, {"settings"}),
        (rename_a_file, {"settings"}),
        (in_recipe("dns: [10.0.0.3]", "dns: [10.0.0.4]"), {"settings"}),
        (in_recipe("mask: [dbus.service]", "mask: [dbus.socket]"), {"settings"}),
        (replace_in("web/package-lock.json", "3", "2"), {"web"}),
        (replace_in("web/package.json", "{}", '{"private": true}'), {"web"}),
        (in_recipe("omit: [docs]", "omit: [man]"), {"web"}),
        (in_recipe("to: /opt/web", "to: /srv/web"), {"web"}),
        (replace_in("agent/main.py", "print()", "exit()"), {"agent"}),
        (in_recipe("to: /usr/lib/agent", "to: /opt/agent"), {"agent"}),
        (in_recipe("modules: [virtio_net]", "modules: [virtio_console]"), {"kernel"}),
        (in_recipe("exclude: [/usr/share/doc/*]", ""), set(NAMES) - {"kernel"}),
        (in_recipe("source_date_epoch: 1000", "source_date_epoch: 1001"), set(NAMES)),
        # These are inputs of the image, or not used.
        (in_recipe("cmdline: [quiet]", "cmdline: [debug]"), set()),
        (in_recipe("free_space_mib: 16", "free_space_mib: 32"), set()),
        (replace_in("agent/notes.txt", "not", "never"), set()),
    ],
)
def test_change_affects_only_dependent_layers(
    folder: Path, change: Callable[[Path], None], changed: set[str]
) -> None:
    before = ids(folder)
    change(folder)
    assert differing(before, ids(folder)) == changed


@pytest.mark.parametrize(
    ("package", "changed"),
    [
        ("systemd", {"base", "desktop", "agent"}),
        ("libc6", {"base", "desktop", "agent"}),
        ("libx11", {"desktop", "agent"}),
        ("novnc", {"desktop", "agent"}),
        ("linux_image_6.1", {"kernel"}),
        ("tiny_initramfs_core", {"kernel"}),
        ("unrelated", set()),
    ],
)
def test_package_version_affects_layers_with_the_package(
    folder: Path, package: str, changed: set[str]
) -> None:
    assert differing(ids(folder), ids(folder, **{package: "2.0"})) == changed


def test_tool_version_affects_all_layers(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml")
    newer = plan_layers(recipe, PinnedArchive({}), TOOLS | {"cpio": "3"})
    assert differing(ids(folder), {plan.name: plan.id for plan in newer}) == set(NAMES)


def test_untracked_modes_and_caches_are_no_inputs(folder: Path) -> None:
    before = ids(folder)
    (folder / "settings/etc/plain.conf").chmod(0o600)
    (folder / "agent/__pycache__").mkdir()
    (folder / "agent/__pycache__/main.py").write_text("cached\n")
    assert ids(folder) == before


def test_order_of_commands_affects_the_id(folder: Path) -> None:
    in_recipe('run: ["true"]', 'run: ["true", "false"]')(folder)
    before = ids(folder)
    in_recipe('run: ["true", "false"]', 'run: ["false", "true"]')(folder)
    assert differing(before, ids(folder)) == {"base", "desktop", "agent"}


def test_layer_lists_only_the_packages_it_adds(folder: Path) -> None:
    by_name = {plan.name: plan for plan in plans(folder)}
    assert {deb.name for deb in by_name["desktop"].debs} == {"tigervnc", "libx11"}
    assert [plan.name for plan in by_name["agent"].below] == ["base", "desktop"]
    assert by_name["settings"].below == ()


def test_kernel_layer_has_the_packages_of_its_meta_package(folder: Path) -> None:
    kernel = plans(folder)[1]
    assert [deb.name for deb in kernel.unpacked] == ["linux-image-6.1", "tiny-initramfs-core"]


def test_guest_files_of_a_layer(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml")
    settings, agent = recipe.layers[2], recipe.layers[4]
    assert list(guest_files(settings, recipe.variables())) == [
        GuestFile("etc/plain.conf", 0o644, b"a = 1\n"),
        GuestFile("etc/resolv.conf", 0o644, b"10.0.0.3\n"),
        GuestFile("etc/systemd/system/dbus.service", 0o777, target="/dev/null"),
    ]
    assert [file.path for file in guest_files(agent, {})] == ["usr/lib/agent/main.py"]


@pytest.mark.parametrize("text", ["{{ netwrok.dns }}", "{% if %}"])
def test_broken_template_is_refused_with_its_file(folder: Path, text: str) -> None:
    path = folder / "settings/etc/resolv.conf.j2"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        plans(folder)
    assert caught.value.file == path


def test_staging_has_files_with_guest_modes(tmp_path: Path) -> None:
    files = [
        GuestFile("etc/a.conf", 0o644, b"a"),
        GuestFile("etc/b.conf", 0o777, target="a.conf"),
        GuestFile("usr/bin/tool", 0o755, b"#!/bin/sh\n"),
    ]
    write_staging(tmp_path / "staging", files)
    staging = tmp_path / "staging"
    assert (staging / "etc/b.conf").read_bytes() == b"a"
    assert (staging / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (staging / "usr/bin").stat().st_mode & 0o777 == 0o755


def test_drop_matches_removes_globbed_paths(tmp_path: Path) -> None:
    for name in ("keep/file", "docs/a/b", "docs.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "docs.d").symlink_to("keep")
    drop_matches(tmp_path, ["docs*", "nothing"])
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]
    assert (tmp_path / "keep/file").exists()


def test_script_of_a_layer_installs_then_copies_then_runs(folder: Path) -> None:
    layer = load_recipe(folder / "recipe.yaml").layers[1].model_copy(update={"run": ["echo 'a b'"]})
    lines = chroot_script(layer, ["apt-get", "install", "tigervnc"]).splitlines()
    order = ["policy-rc.d", "apt-get install tigervnc", "rm ", "tar -C", "sh -eu -c", "enable"]
    places = [next(n for n, line in enumerate(lines) if word in line) for word in order]
    assert places == sorted(places)
    assert lines[-1].endswith("systemctl --quiet enable vnc.service")


def test_script_without_packages_has_no_policy_rc_d(folder: Path) -> None:
    layer = load_recipe(folder / "recipe.yaml").layers[4]
    assert "policy-rc.d" not in chroot_script(layer, [])


def test_recipe_has_all_kinds_of_layers() -> None:
    layers = yaml.safe_load(RECIPE)["layers"]
    keys = {key for layer in layers for key in layer}
    assert keys == {"name", "packages", "files", "run", "unpack", "enable", "mask", "npm", "copy"}


def test_removed_layer_is_renamed_before_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = tmp_path / "0123-web"
    for left in (tmp_path / ".0123-web.gone", layer):  # the first is left by a killed removal
        (left / "tree").mkdir(parents=True)
        (left / "tree" / "file").write_text("x")
    with watched_disk(monkeypatch) as work:
        remove_layer(layer)
    assert (work.renames, work.faults()) == (1, [])
    assert list(tmp_path.iterdir()) == []
