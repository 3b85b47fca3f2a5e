"""Plain equivalents to compare the golden image with: the same parts, as Debian makes them.

One mmdebstrap run with Debian's own kernel and initramfs, beside it the same npm packages, one
mkfs with its defaults; nothing excluded, masked, disabled or trimmed. noVNC and websockify, which
the recipe only unpacks, are installed with their dependencies, as apt would. The desktop's and the
agent's files, user and units are those of the recipe, so that the same services answer after a
boot.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from polydev.image.apt import package_sources
from polydev.image.layer_plans import guest_files, write_staging
from polydev.image.recipe import Layer, Recipe
from polydev.npm import npm_argv
from polydev.processes import run

CMDLINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0"
# All of the base layer's files that are not tuning: who the guest is on its network.
IDENTITY = ("etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/systemd/network/")
FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class PlainImage:
    """`build_seconds` is what mmdebstrap, npm and mkfs took, and nothing else."""

    rootfs: Path
    kernel: Path
    initrd: Path
    build_seconds: float


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started


def make_plain_image(recipe: Recipe, folder: Path) -> PlainImage:
    tree, rootfs = folder / "tree", folder / "rootfs.ext4"
    of_npm = [layer for layer in recipe.layers if layer.npm]
    watch = _Stopwatch()
    with watch.running(), ThreadPoolExecutor() as pool:
        installed = [pool.submit(_install_npm, layer, folder) for layer in of_npm]
        run(_mmdebstrap_argv(recipe, tree))
        packages = [each.result() for each in installed]
    for layer, place in zip(of_npm, packages, strict=True):
        place.rename(_npm_place(layer, tree))
    for number, layer in enumerate(recipe.layers):
        _add_services(recipe, layer, tree, folder / "staging", only_identity=number == 0)
    kernel, initrd = folder / "vmlinuz", folder / "initrd.img"
    shutil.copy(next(tree.glob("boot/vmlinuz-*")), kernel)
    shutil.copy(next(tree.glob("boot/initrd.img-*")), initrd)
    size = int(run(["du", "-s", "-B1", tree]).stdout.split()[0]) * 11 // 10 + FREE_BYTES
    with watch.running():
        run(["mkfs.ext4", "-q", "-F", "-d", tree, rootfs, f"{size >> 10}k"])
    shutil.rmtree(tree)
    return PlainImage(rootfs, kernel, initrd, watch.seconds)


def _mmdebstrap_argv(recipe: Recipe, tree: Path) -> list[str | Path]:
    packages = [recipe.kernel.package, "initramfs-tools"]
    packages += [name for layer in recipe.layers for name in (*layer.packages, *layer.unpack)]
    argv: list[str | Path] = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
    ]
    argv += [f"--architectures={recipe.architecture}", f"--include={','.join(packages)}"]
    return [*argv, recipe.suite, tree, *package_sources(recipe.suite).splitlines()]


def _npm_place(layer: Layer, tree: Path) -> Path:
    assert layer.npm
    place = tree / layer.npm.to.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _install_npm(layer: Layer, folder: Path) -> Path:
    """Install a layer's npm packages beside the tree, which mmdebstrap wants to be empty."""
    assert layer.npm
    place = folder / layer.name
    place.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(layer.folder / layer.npm.folder / name, place)
    argv = [*npm_argv(), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    run([*argv, f"--cache={folder / 'npm'}"], cwd=place)
    return place


def _add_services(
    recipe: Recipe, layer: Layer, tree: Path, staging: Path, *, only_identity: bool
) -> None:
    """The layer's files, commands and units into the tree; no masks and nothing disabled."""
    files = [file for file in guest_files(layer, recipe.variables()) if file.target != "/dev/null"]
    commands = list(layer.run)
    if only_identity:
        files = [file for file in files if file.path.startswith(IDENTITY)]
        # As an installed Debian has: an id, so that no boot is the first, and no open root.
        commands = ["systemd-machine-id-setup", "passwd --quiet --lock root"]
    write_staging(staging, files)
    run(["cp", "-a", "--no-target-directory", staging, tree])
    shutil.rmtree(staging)
    commands += [f"systemctl --quiet enable {' '.join(layer.enable)}"] if layer.enable else []
    for command in commands:
        run(["chroot", tree, "sh", "-eu", "-c", command])
