"""The layers of a recipe: what each is made from, its id, and the script that makes it.

`plan_layers` returns the layers and their inputs without building anything; a layer's id is the
SHA-256 of its inputs. `LayerCache.build` makes missing layers. A layer that is made inside the
layers below depends on their ids; one that only has files does not, and is made at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError

from polydev.errors import ConfigError
from polydev.image.apt import ESSENTIAL, Archive, Deb
from polydev.image.guest_paths import LayerConflict, follow, is_mounted, on_disk
from polydev.image.recipe import Layer, Recipe
from polydev.image.reproducible import SCRUBBED
from polydev.image.tree_merge import matches, remove_tree
from polydev.providers import GUEST_FOLDER, Provider, guest_json

# Raised when the builder makes something else of the same inputs.
FORMAT = 4
KERNEL_LAYER = "kernel"
TINY_INITRAMFS = "tiny-initramfs-core"
TEMPLATE_SUFFIX = ".j2"


@dataclass(frozen=True)
class GuestFile:
    """A file or symlink of a layer; `path` has no leading slash."""

    path: str
    mode: int
    content: bytes = b""
    target: str | None = None


@dataclass(frozen=True)
class LayerPlan:
    """One layer before it is built. `below` are the layers that it is made inside."""

    name: str
    id: str
    layer: Layer | None
    debs: tuple[Deb, ...]
    unpacked: tuple[Deb, ...]
    files: tuple[GuestFile, ...]
    below: tuple[LayerPlan, ...]


def plan_layers(recipe: Recipe, archive: Archive, tools: Mapping[str, str]) -> list[LayerPlan]:
    """Return the layers of an image, lowest first; the kernel's is the second one.

    `tools` are the versions of the programs whose output becomes part of a layer.
    """
    plans: list[LayerPlan] = []
    chain: list[LayerPlan] = []
    packages: list[str] = [ESSENTIAL]
    known: set[Deb] = set()
    for layer in recipe.layers:
        debs: list[Deb] = []
        if layer.packages:
            packages += layer.packages
            debs = [deb for deb in archive.resolve(packages) if deb not in known]
            known.update(debs)
        unpacked = tuple(archive.locate(layer.unpack))
        files = tuple(guest_files(layer, recipe.variables()))
        below = tuple(chain) if layer.needs_chroot else ()
        made_from = {
            "format": FORMAT,
            "name": layer.name,
            "below": [plan.id for plan in below],
            "debs": sorted(f"{deb.name}={deb.version} {deb.sha256}" for deb in debs),
            "unpack": [deb.sha256 for deb in unpacked],
            "files": [file_fingerprint(file) for file in files],
            "npm": _npm_inputs(layer),
            "mask": layer.mask,
            "run": layer.run,
            "enable": layer.enable,
            "disable": layer.disable,
            "remove": layer.remove,
            "exclude": [recipe.exclude, recipe.include],
            "scrubbed": SCRUBBED,
            "epoch": recipe.source_date_epoch,
            "tools": dict(tools),
        }
        plan = LayerPlan(layer.name, _digest(made_from), layer, tuple(debs), unpacked, files, below)
        plans.append(plan)
        if layer.needs_chroot:
            chain.append(plan)
        if len(plans) == 1:
            plans.append(_plan_kernel(recipe, archive, tools))
    return plans


def _plan_kernel(recipe: Recipe, archive: Archive, tools: Mapping[str, str]) -> LayerPlan:
    wanted = recipe.kernel.package
    debs = archive.resolve([ESSENTIAL, wanted])
    # A meta package depends on the newest kernel, which is the package to unpack.
    kernels = [deb for deb in debs if deb.name.startswith("linux-image-") and deb.name != wanted]
    kernels = kernels or [deb for deb in debs if deb.name == wanted]
    unpacked = (*kernels[:1], *archive.locate([TINY_INITRAMFS]))
    made_from = {
        "format": FORMAT,
        "name": KERNEL_LAYER,
        "unpack": [deb.sha256 for deb in unpacked],
        "modules": recipe.kernel.modules,
        "initrd_modules": recipe.kernel.initrd_modules,
        "epoch": recipe.source_date_epoch,
        "tools": dict(tools),
    }
    return LayerPlan(KERNEL_LAYER, _digest(made_from), None, (), unpacked, (), ())


def guest_files(layer: Layer, variables: Mapping[str, Any]) -> Iterator[GuestFile]:
    """Yield the files of a layer, sorted by path, with `*.j2` templates rendered.

    Modes are 755 or 644 by the owner's execute bit: Git keeps no others.
    """
    found: dict[str, GuestFile] = {}
    if layer.files:
        root = layer.folder / layer.files
        for path in _files_below(root):
            file = _guest_file(path, str(path.relative_to(root)), variables)
            found[file.path] = file
    for copy in layer.copies:
        root = layer.folder / copy.source
        for path in sorted(root.glob(copy.glob)):
            if path.is_file() and "__pycache__" not in path.parts:
                target = str(Path(copy.to.lstrip("/")) / path.relative_to(root))
                found[target] = GuestFile(target, _mode(path), path.read_bytes())
    for name, provider in layer.load_providers().items():
        path_name = f"{GUEST_FOLDER}/{name}.json"
        found[path_name] = GuestFile(path_name, 0o644, guest_json(provider))
    for unit in layer.mask:
        path_name = f"etc/systemd/system/{unit}"
        found[path_name] = GuestFile(path_name, 0o777, target="/dev/null")
    for path_name in sorted(found):
        if is_mounted(path_name):
            hint = "remove it from the layer: no guest would ever see it"
            message = f"layer {layer.name}: /{path_name} is where the guest mounts a filesystem"
            raise ConfigError(message, hint)
        yield found[path_name]


def providers_in(plans: Sequence[LayerPlan]) -> dict[str, Provider]:
    """Return the providers that the layers write into the guest, by name."""
    return {
        Path(file.path).stem: Provider.model_validate_json(file.content)
        for plan in plans
        for file in plan.files
        if Path(file.path).parent == Path(GUEST_FOLDER)
    }


def _guest_file(path: Path, name: str, variables: Mapping[str, Any]) -> GuestFile:
    if path.is_symlink():
        return GuestFile(name, 0o777, target=os.readlink(path))
    if not name.endswith(TEMPLATE_SUFFIX):
        return GuestFile(name, _mode(path), path.read_bytes())
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    try:
        text = environment.from_string(path.read_text(encoding="utf-8")).render(variables)
    except (TemplateError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be rendered: {error}", file=path) from error
    return GuestFile(name.removesuffix(TEMPLATE_SUFFIX), _mode(path), text.encode())


def _files_below(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted([*files, *links]):
            yield Path(folder, name)


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644


def file_fingerprint(file: GuestFile) -> str:
    content = hashlib.sha256(file.content).hexdigest()
    return f"{file.path} {file.mode:o} {file.target or content}"


def _npm_inputs(layer: Layer) -> list[str]:
    if not layer.npm:
        return []
    folder = layer.folder / layer.npm.folder
    names = ("package.json", "package-lock.json")
    return [layer.npm.to, *layer.npm.omit, *((folder / name).read_text() for name in names)]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_staging(folder: Path, files: Sequence[GuestFile]) -> None:
    """Write the files below `folder` at their paths in the guest. Raises LayerConflict."""
    folder.mkdir(parents=True, exist_ok=True)
    at = on_disk(folder)
    # Links first: a file whose path goes through one of them goes where it leads.
    for file in sorted(files, key=lambda file: file.target is None):
        above, _, name = file.path.rpartition("/")
        path = folder / follow(above, at) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if file.target is not None:
                path.symlink_to(file.target)
            else:
                with path.open("xb") as stream:
                    stream.write(file.content)
                path.chmod(file.mode)
        except (FileExistsError, NotADirectoryError):
            raise LayerConflict(f"/{file.path} conflicts with another file of the layer") from None
    for made, _, _ in os.walk(folder):
        Path(made).chmod(0o755)


def drop_matches(folder: Path, globs: Sequence[str]) -> None:
    """Remove the paths below `folder` that match the globs."""
    for pattern in globs:
        for path in matches(folder, pattern):
            remove_tree(path)


# A command of a recipe is root in the guest's tree and has no rights outside of it.
_KEPT_FROM_COMMANDS = (
    *("audit_control", "bpf", "mknod", "net_admin", "perfmon", "sys_admin", "sys_boot"),
    *("sys_module", "sys_nice", "sys_pacct", "sys_ptrace", "sys_rawio", "sys_resource"),
    *("sys_time", "sys_tty_config", "syslog", "wake_alarm"),
)
_INSIDE = f"{shlex.quote(sys.executable)} -m polydev.image.sandbox_program"
_CHROOT = (
    f"setpriv --bounding-set={','.join(f'-{name}' for name in _KEPT_FROM_COMMANDS)} "
    '--inh-caps=-all chroot "$root"'
)


def chroot_script(layer: Layer, install: Sequence[str]) -> str:
    """Return the script that makes a layer inside the tree $1, from the layer's own files in $2.

    It moves the files to $3, each to its place on the tree. `install` is the apt-get command for
    the layer's packages, empty if it has none; $4 is the folder with the package files.
    """
    lines = ["root=$1", "staging=$2", "fitted=$3", "debs=$4"]
    if install:
        lines += [
            f'archives=$({_INSIDE} folder "$root" /var/cache/apt/archives)',
            'mount --bind "$debs" "$archives"',
            # Packages must not start services.
            f'policy=$({_INSIDE} folder "$root" /usr/sbin)/policy-rc.d',
            # `install` replaces a link that a package left there, and does not write through it.
            r"printf '#!/bin/sh\nexit 101\n' | install -m 0755 /dev/stdin \"$policy\"".replace(
                '\\"', '"'
            ),
            # apt closes its status descriptor for package scripts, so it cannot be 2.
            f"{shlex.join(install)} 3>&2",
            'rm "$policy"',
            'umount "$archives"',
        ]
    lines += [
        f'{_INSIDE} fit "$root" "$staging" "$fitted"',
        'tar -C "$fitted" -c . | tar -C "$root" -x --no-overwrite-dir',
    ]
    lines += [f"{_CHROOT} sh -eu -c {shlex.quote(command)}" for command in layer.run]
    for verb, units in (("enable", layer.enable), ("disable", layer.disable)):
        if units:
            lines.append(f"{_CHROOT} systemctl --quiet {verb} {shlex.join(units)}")
    if layer.remove:
        lines.append(f'{_INSIDE} remove "$root" {shlex.join(layer.remove)}')
    return "\n".join(lines) + "\n"
