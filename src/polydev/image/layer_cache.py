"""Layers on disk: `layers/<id>/{tree,layer.json,tree.jsonl.gz}` and, for the kernel, its files.

A layer is made in a temporary folder and gets its name by one rename when it is complete, so an
interrupted build leaves finished layers only.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from polydev.durable_files import sync
from polydev.errors import BuildError, CommandError
from polydev.image import guest_npm, kernel, reproducible
from polydev.image.apt import Archive, Deb
from polydev.image.file_listing import list_tree, read_listing, write_listing
from polydev.image.guest_paths import LayerConflict, in_tree
from polydev.image.layer_plans import (
    KERNEL_LAYER,
    LayerPlan,
    chroot_script,
    drop_matches,
    write_staging,
)
from polydev.image.recipe import Recipe
from polydev.image.sandbox import Overlay, build_environment, contained_argv, in_overlay_argv
from polydev.image.sandbox_program import REFUSED
from polydev.image.tree_merge import matches, merge_tree, nodes
from polydev.image_layout import INITRD, KERNEL, TREE
from polydev.image_record import Package
from polydev.processes import run, run_lines
from polydev.progress import Step

META = "layer.json"
APT_STATUS = ("pmstatus:", "dlstatus:")


@dataclass(frozen=True)
class BuiltLayer:
    """A complete layer; `seconds` is None if it came from the cache."""

    plan: LayerPlan
    folder: Path
    packages: tuple[Package, ...]
    seconds: float | None

    @property
    def tree(self) -> Path:
        return self.folder / "tree"


class LayerCache:
    """The layers below `folder`: find them, and build missing ones."""

    def __init__(self, folder: Path, archive: Archive, recipe: Recipe) -> None:
        self.folder = folder
        self.archive = archive
        self.recipe = recipe

    def path(self, plan: LayerPlan) -> Path:
        return self.folder / plan.id

    def log_file(self, plan: LayerPlan) -> Path:
        """The output of the commands that made the layer the last time."""
        return self.folder.parent / "logs" / f"layer-{plan.name}.log"

    def find(self, plan: LayerPlan) -> BuiltLayer | None:
        try:
            meta = json.loads((self.path(plan) / META).read_text())
        except FileNotFoundError:
            return None
        packages = tuple(Package(**package) for package in meta["packages"])
        return BuiltLayer(plan, self.path(plan), packages, None)

    def build(self, plan: LayerPlan, scratch: Path, step: Step) -> BuiltLayer:
        """Make the layer in `scratch`, then rename it to its place.

        Raises BuildError with the layer and the last output of its commands.
        """
        started = time.monotonic()
        made = scratch / "layer"
        root = made / "tree"
        root.mkdir(parents=True)
        self.log_file(plan).parent.mkdir(parents=True, exist_ok=True)
        self.log_file(plan).unlink(missing_ok=True)
        try:
            packages = self._make(plan, made, scratch, step)
        except LayerConflict as clash:
            raise refused(plan, str(clash)) from clash
        except CommandError as error:
            last = error.stderr_tail.rpartition("\n")[2]
            if last.startswith(REFUSED):
                raise refused(plan, last.removeprefix(REFUSED)) from error
            raise BuildError(
                f"cannot build layer {plan.name}: {Path(error.argv[0]).name} exited with status "
                f"{error.status}:\n{error.stderr_tail}",
                f"the complete output is in {self.log_file(plan)}; correct the cause and run the "
                "same command again: finished layers are kept",
            ) from error
        step.say("making it reproducible")
        if plan.layer and plan.layer.needs_chroot:
            # Files of the recipe are the same in each build, so they are kept wherever they are.
            reproducible.scrub(root, nodes(scratch / "fitted").keys())
        reproducible.clamp_times(root, self.recipe.source_date_epoch)
        write_listing(list_tree(root), made / TREE)
        packages = [deb_package(deb) for deb in (*plan.debs, *plan.unpacked)] + packages
        meta = {
            "name": plan.name,
            "seconds": time.monotonic() - started,
            "packages": [package.model_dump() for package in packages],
        }
        (made / META).write_text(json.dumps(meta, indent=1))
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path(plan).exists():
            remove_layer(self.path(plan))
        # The name means that the layer is complete, so it is synced before it gets the name.
        run(["sync", "--file-system", made])
        made.rename(self.path(plan))
        sync(self.folder)
        return BuiltLayer(plan, self.path(plan), tuple(packages), time.monotonic() - started)

    def _make(self, plan: LayerPlan, made: Path, scratch: Path, step: Step) -> list[Package]:
        """Make the layer's files and return its npm packages.

        Raises LayerConflict, CommandError.
        """
        root = made / "tree"
        if plan.name == KERNEL_LAYER:
            self._make_kernel(plan, made, scratch, step)
            return []
        layer = plan.layer
        assert layer is not None
        bootstraps = bool(layer.packages) and not plan.below
        if bootstraps:
            self._bootstrap(plan, root, step)
        staging = scratch / "staging" if layer.needs_chroot else root
        staging.mkdir(exist_ok=True)
        # Each part is made in a separate folder, where no link of another part can redirect it.
        part = scratch / "part"
        write_staging(part, plan.files)
        merge_tree(part, staging)
        for deb in plan.unpacked:
            run(["dpkg-deb", "-x", self.archive.path(deb), part])
            merge_tree(part, staging)
        packages: list[Package] = []
        if layer.npm:
            to = part / layer.npm.to.lstrip("/")
            guest_npm.install(layer.folder / layer.npm.folder, to, step)
            drop_matches(to, layer.npm.omit)
            packages = guest_npm.installed_packages(to)
            merge_tree(part, staging)
        if layer.needs_chroot:
            self._run_inside(plan, root, staging, scratch, step, with_packages=not bootstraps)
        return packages

    def _bootstrap(self, plan: LayerPlan, root: Path, step: Step) -> None:
        """Make the first layer: a minimal Debian and its packages, from fetched files."""
        lists, debs = shlex.quote(str(self.archive.lists)), shlex.quote(str(self.archive.debs))
        names = " ".join(shlex.quote(deb.file) for deb in plan.debs)
        hook = (
            f'cp -a {lists}/. "$1/var/lib/apt/lists/"; mkdir -p "$1/var/cache/apt/archives"; '
            f'cd {debs} && cp -l {names} "$1/var/cache/apt/archives/"'
        )
        assert plan.layer is not None
        excludes = [f"path-exclude={glob}" for glob in self.recipe.exclude]
        includes = [f"path-include={glob}" for glob in self.recipe.include]
        argv = [
            *("mmdebstrap", "--mode=root", "--variant=essential", "--format=directory"),
            f"--architectures={self.recipe.architecture}",
            "--skip=update,download/empty,essential/unlink",
            f"--setup-hook={hook}",
            *(f"--dpkgopt={option}" for option in ("force-unsafe-io", *excludes, *includes)),
            '--aptopt=APT::Install-Recommends "false"',
            f"--include={','.join(plan.layer.packages)}",
            *(self.recipe.suite, str(root)),
            *self.archive.sources.read_text().splitlines(),
        ]
        run_lines(
            contained_argv(argv),
            lambda line: step.say(line.removeprefix("I: ")),
            env=build_environment(self.recipe.source_date_epoch),
            inherit=False,
            log_file=self.log_file(plan),
        )

    def _run_inside(
        self,
        plan: LayerPlan,
        root: Path,
        staging: Path,
        scratch: Path,
        step: Step,
        *,
        with_packages: bool,
    ) -> None:
        layer = plan.layer
        assert layer is not None
        if plan.below:
            at, work = scratch / "merged", scratch / "work"
            at.mkdir()
            work.mkdir()
            lower = tuple(self.path(below) / "tree" for below in plan.below)
            overlay = Overlay(lower, at, root, work)
        else:
            at = root
            overlay = Overlay((), root)
        packages = layer.packages if with_packages else []
        install = self._install_argv(at, packages) if packages else []
        script = chroot_script(layer, install)
        places = (at, staging, scratch / "fitted", self.archive.debs)
        command = ["sh", "-eu", "-c", script, "layer", *map(str, places)]
        argv = in_overlay_argv(overlay, command, for_chroot=True)
        run_lines(
            argv,
            lambda line: _say_apt_status(step, line),
            env=build_environment(self.recipe.source_date_epoch),
            inherit=False,
            noise=APT_STATUS,
            log_file=self.log_file(plan),
        )

    def _install_argv(self, at: Path, packages: list[str]) -> list[str]:
        """Return the command of the machine's own apt that installs into the tree at `at`."""
        inside = {
            "Dir::State::status": at / "var/lib/dpkg/status",
            "Dir::State::extended_states": at / "var/lib/apt/extended_states",
            "Dir::Cache::archives": at / "var/cache/apt/archives",
            "DPkg::Chroot-Directory": at,
            "APT::Status-Fd": 3,
            "Dpkg::Use-Pty": "false",
        }
        options = [word for key, value in inside.items() for word in ("-o", f"{key}={value}")]
        return ["apt-get", *self.archive.options(), *options, "-q", "-y", "install", *packages]

    def _make_kernel(self, plan: LayerPlan, made: Path, scratch: Path, step: Step) -> None:
        """Make the kernel's layer: its modules in the tree, vmlinux and initrd beside it."""
        for deb in plan.unpacked:
            step.say(f"unpacking {deb.name}")
            run(["dpkg-deb", "-x", self.archive.path(deb), scratch / deb.name])
        package, init_package = (scratch / deb.name for deb in plan.unpacked)
        images = sorted(matches(package, "boot/vmlinuz-*"))
        if not images:
            raise BuildError(f"package {plan.unpacked[0].name} has no kernel (boot/vmlinuz-*)")
        release = images[0].name.removeprefix("vmlinuz-")
        step.say("unpacking the kernel image")
        image = in_tree(package, f"boot/{images[0].name}")
        (made / KERNEL).write_bytes(kernel.extract_vmlinux(image.read_bytes()))
        modules = made / "tree/usr/lib/modules" / release
        modules.parent.mkdir(parents=True)
        shutil.copytree(in_tree(package, f"lib/modules/{release}"), modules, symlinks=True)
        run(["depmod", "-b", modules.parents[2], release])
        table = kernel.parse_modules_dep((modules / "modules.dep").read_text())
        wanted = self.recipe.kernel
        root_needs = kernel.load_order(table, wanted.initrd_modules)
        kernel.write_initrd(
            made / INITRD,
            scratch / "initrd",
            in_tree(init_package, kernel.TINY_INIT),
            modules,
            root_needs,
            self.recipe.source_date_epoch,
        )
        kept = kernel.load_order(table, [*wanted.initrd_modules, *wanted.modules])
        kernel.keep_modules(modules, kept)


def refused(plan: LayerPlan, why: str) -> BuildError:
    """Return the error for a layer of the recipe that does not fit the layers below it."""
    return BuildError(
        f"layer {plan.name} does not fit the image: {why}",
        "move its files to paths that fit, or `remove` what is in their way in the image; "
        "golden/README.md says which files may replace which",
    )


def remove_layer(folder: Path) -> None:
    """Remove a layer, renaming it first, so that no part of one is found after a kill."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    sync(folder.parent)
    shutil.rmtree(gone)


def layer_bytes(folder: Path) -> int:
    listing = folder / TREE
    return sum(entry["size"] for entry in read_listing(listing)) if listing.exists() else 0


def deb_package(deb: Deb) -> Package:
    return Package(kind="deb", name=deb.name, version=deb.version)


def _say_apt_status(step: Step, line: str) -> None:
    """Report progress from apt's status lines: `pmstatus:package:percent:text`."""
    kind, _, rest = line.partition(":")
    if kind == "pmstatus" and rest.count(":") >= 2:
        _, percent, text = rest.split(":", 2)
        step.say(text, float(percent) / 100)
