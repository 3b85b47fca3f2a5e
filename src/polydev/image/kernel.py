"""The kernel, unpacked for direct boot, and the small initrd that finds the root.

An uncompressed `vmlinux` boots in QEMU (by its PVH note) and in Firecracker, and the guest does not
have to unpack it. The initrd has a static init (Debian's tiny-initramfs) and the modules that the
root filesystem needs, and nothing else.
"""

from __future__ import annotations

import lzma
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from polydev.errors import BuildError
from polydev.processes import run

ELF_MAGIC = b"\x7fELF"
XZ_MAGIC = b"\xfd7zXZ\x00"
TINY_INIT = "usr/lib/x86_64-linux-gnu/tiny-initramfs/init-static"


def extract_vmlinux(image: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage that was packed with xz, as Debian's are."""
    start = image.find(XZ_MAGIC)
    while start >= 0:
        try:
            kernel = lzma.LZMADecompressor().decompress(image[start:])
        except lzma.LZMAError:
            kernel = b""
        if kernel.startswith(ELF_MAGIC):
            return kernel
        start = image.find(XZ_MAGIC, start + 1)
    raise BuildError("no xz-packed ELF kernel found in the kernel package's image")


def parse_modules_dep(text: str) -> dict[str, tuple[str, list[str]]]:
    """Parse modules.dep: name, as modprobe knows it, to its path and the paths that it needs."""
    table = {}
    for line in text.splitlines():
        path, _, needed = line.partition(":")
        table[module_name(path)] = (path, needed.split())
    return table


def module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def load_order(table: Mapping[str, tuple[str, list[str]]], names: Iterable[str]) -> list[str]:
    """Return the paths of the named modules and their dependencies, dependencies first.

    Raises BuildError for a module that the kernel does not have.
    """
    order: dict[str, None] = {}
    for name in names:
        if module_name(name) not in table:
            raise BuildError(
                f"the kernel has no module {name}",
                "correct kernel.modules or kernel.initrd_modules in the recipe",
            )
        path, needed = table[module_name(name)]
        order.update(dict.fromkeys([*reversed(needed), path]))
    return list(order)


def keep_modules(release_folder: Path, paths: Iterable[str]) -> None:
    """Remove all modules of `release_folder` except these, and index the rest."""
    kept = set(paths)
    for module in sorted(release_folder.rglob("*.ko*")):
        if str(module.relative_to(release_folder)) not in kept:
            module.unlink()
    for name, _, _ in os.walk(release_folder, topdown=False):
        folder = Path(name)
        if not any(folder.iterdir()):
            folder.rmdir()
    # depmod needs the folder above lib/modules; in a merged system that is usr.
    run(["depmod", "-b", release_folder.parents[2], release_folder.name])


def write_initrd(
    file: Path, scratch: Path, init: Path, release_folder: Path, paths: Iterable[str], epoch: int
) -> None:
    """Write a cpio archive with `init`, the modules at `paths` and the list that init loads."""
    shutil.rmtree(scratch, ignore_errors=True)
    for folder in ("dev", "proc", "target"):
        (scratch / folder).mkdir(parents=True)
    shutil.copy(init, scratch / "init")
    names = []
    for path in paths:
        names.append("/" + Path(path).name)
        shutil.copy(release_folder / path, scratch / Path(path).name)
    (scratch / "modules").write_text("".join(f"{name}\n" for name in names))
    members = sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*"))
    for member in [scratch, *scratch.rglob("*")]:
        member.chmod(0o755 if member.is_dir() or member.name == "init" else 0o644)
        os.utime(member, (epoch, epoch))
    run(
        [
            *("cpio", "--create", "--quiet", "--format=newc", "--owner=0:0", "--reproducible"),
            f"--file={file}",
        ],
        input="\n".join(members) + "\n",
        cwd=scratch,
    )
    shutil.rmtree(scratch)
