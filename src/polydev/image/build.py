"""golden.build: make the image of a recipe and add it to the store.

The build makes the layers that the cache lacks, independent ones at the same time. It makes the
root filesystem from all layers, and names the image by the hash of its files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from polydev import __version__
from polydev.durable_files import write_text_durably
from polydev.errors import BuildError, CommandError, ConfigError
from polydev.file_checksum import file_sha256
from polydev.image import file_listing
from polydev.image.apt import ESSENTIAL, Archive, UnknownPackages, recipe_archive
from polydev.image.layer_cache import BuiltLayer, LayerCache
from polydev.image.layer_plans import FORMAT, KERNEL_LAYER, LayerPlan, plan_layers, providers_in
from polydev.image.layer_pruning import remember_store
from polydev.image.layer_stack import stack
from polydev.image.recipe import Recipe
from polydev.image.rootfs import make_rootfs
from polydev.image.store import ImageStore
from polydev.image_layout import BOOT_FILES, CMDLINE, INITRD, KERNEL, RECORD, ROOTFS, SBOM, TREE
from polydev.image_record import FileEntry, ImageRecord, LayerEntry, manifest_digest
from polydev.processes import end_waited_for, run
from polydev.progress import Steps
from polydev.settings import Settings

TOOLS = ("mmdebstrap", "e2fsprogs", "cpio")
WORKERS = 4
# The messages of the C library (and npm), and of apt before a download.
NO_SPACE = ("no space left on device", "you don't have enough free space")


@dataclass(frozen=True)
class BuildOptions:
    """`no_cache` makes every layer again; `offline` asks no package index."""

    no_cache: bool = False
    refresh: bool = False
    offline: bool = False


@dataclass(frozen=True)
class BuildResult:
    """The image, the layers that this build made, whether it made the image, and its duration.

    The record is that of the image's first build, so its layers may have the times of another one.
    """

    record: ImageRecord
    made: tuple[str, ...]
    changed: bool
    seconds: float


def build(
    recipe: Recipe, settings: Settings, store: ImageStore, steps: Steps, options: BuildOptions
) -> BuildResult:
    """Build the image of `recipe` unless the store has it already.

    Raises ConfigError, BuildError.
    """
    started = time.monotonic()
    if os.geteuid() != 0:
        raise ConfigError(
            "golden.build must run as root, since it makes users, devices and mounts",
            "run it with sudo",
        )
    with _space_errors(settings.cache), _build_lock(settings.cache, steps), _usual_modes():
        remember_store(settings.cache, store)
        builder = _Builder(recipe, settings, store, steps, options)
        record, made = builder.run()
    return BuildResult(record, made or (), made is not None, time.monotonic() - started)


class _Builder:
    def __init__(
        self,
        recipe: Recipe,
        settings: Settings,
        store: ImageStore,
        steps: Steps,
        options: BuildOptions,
    ) -> None:
        self.recipe = recipe
        self.store = store
        self.steps = steps
        self.options = options
        self.archive: Archive = recipe_archive(settings.cache / "apt", recipe)
        self.layers = LayerCache(settings.cache / "layers", self.archive, recipe)
        self.scratch = settings.cache / "building"
        self.assemblies = settings.cache / "assemblies"

    def run(self) -> tuple[ImageRecord, tuple[str, ...] | None]:
        """Return the image's record, and the layers made for it; None if the store had it."""
        tools = tool_versions()
        if not self.options.offline:
            self.archive.refresh(force=self.options.refresh)
        elif not self.archive.sources.exists():
            raise BuildError(
                "--offline needs the package lists of an earlier build",
                "run ./inv golden.build once without --offline",
            )
        plans = self._plan(tools)
        assembly = self._assembly_id(plans)
        known = self._known_image(assembly)
        if known is not None and not self.options.no_cache:
            return known, None
        shutil.rmtree(self.scratch, ignore_errors=True)
        built = self._build_layers(plans)
        record = self._assemble(built, tools)
        self.assemblies.mkdir(exist_ok=True)
        write_text_durably(self.assemblies / assembly, record.digest)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return record, tuple(layer.plan.name for layer in built if layer.seconds is not None)

    def _plan(self, tools: dict[str, str]) -> list[LayerPlan]:
        try:
            return plan_layers(self.recipe, self.archive, tools)
        except UnknownPackages as error:
            places = [place for name in error.packages for place in self.recipe.places_of(name)]
            where = ", ".join([f"recipe {self.recipe.name}", *dict.fromkeys(places)])
            raise BuildError(f"{where}: {error.message}", error.hint) from error

    def _assembly_id(self, plans: Sequence[LayerPlan]) -> str:
        parts = [
            f"{FORMAT}",
            *(plan.id for plan in plans),
            str(self.recipe.free_space_mib),
            *self.recipe.kernel.cmdline,
        ]
        return manifest_digest({"\n".join(parts): "assembly"})

    def _known_image(self, assembly: str) -> ImageRecord | None:
        try:
            digest = (self.assemblies / assembly).read_text()
        except FileNotFoundError:
            return None
        if digest not in self.store.digests():
            return None
        record = self.store.record(digest)
        # If the image failed its verification because of a damaged file, a new build repairs it.
        was_refused = record.verification is not None and not record.verification.passed
        return None if was_refused and self._is_damaged(record) else record

    def _is_damaged(self, record: ImageRecord) -> bool:
        folder = self.store.path(record.digest)
        return any(
            not (folder / name).is_file() or file_sha256(folder / name) != record.files[name].sha256
            for name in BOOT_FILES
        )

    def _build_layers(self, plans: Sequence[LayerPlan]) -> list[BuiltLayer]:
        """Return all layers, lowest first; build missing ones, at the same time where possible."""
        missing = [plan for plan in plans if self.options.no_cache or not self.layers.find(plan)]
        with ThreadPoolExecutor(WORKERS) as pool:
            fetched = pool.submit(self._fetch, missing)
            futures: dict[str, Future[BuiltLayer]] = {}
            try:
                for plan in missing:
                    futures[plan.id] = pool.submit(self._build_layer, plan, fetched, dict(futures))
                ended, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
                # Those that only lost their lower layers are later in the order.
                made = {key: future.result() for key, future in futures.items() if future in ended}
            except BaseException:
                # An error in one layer ends the others, since nobody waits for them any more.
                pool.shutdown(wait=False, cancel_futures=True)
                end_waited_for()
                raise
        found = [made.get(plan.id) or self.layers.find(plan) for plan in plans]
        return [layer for layer in found if layer is not None]

    def _fetch(self, missing: Sequence[LayerPlan]) -> None:
        debs = [deb for plan in missing for deb in (*plan.debs, *plan.unpacked)]
        if all(self.archive.path(deb).exists() for deb in debs):
            return
        with self.steps.step("packages") as step:
            packages = [name for layer in self.recipe.layers for name in layer.packages]
            unpacked = [deb for plan in missing for deb in plan.unpacked]
            self.archive.fetch_only(unpacked, step.say)
            self.archive.fetch([ESSENTIAL, *packages], step.say)

    def _build_layer(
        self, plan: LayerPlan, fetched: Future[None], before: dict[str, Future[BuiltLayer]]
    ) -> BuiltLayer:
        if plan.debs or plan.unpacked:
            fetched.result()
        for below in plan.below:
            if below.id in before:
                before[below.id].result()
        with self.steps.step(f"layer {plan.name}") as step:
            return self.layers.build(plan, self.scratch / plan.id[:16], step)

    def _assemble(self, layers: Sequence[BuiltLayer], tools: dict[str, str]) -> ImageRecord:
        kernel_folder = next(built.folder for built in layers if built.plan.name == KERNEL_LAYER)
        epoch = self.recipe.source_date_epoch
        stacked = stack(layers, self.scratch / "fitted", epoch)
        listing = stacked.listing()
        with self.store.new_incoming() as incoming, ThreadPoolExecutor(2) as pool:
            with self.steps.step("root filesystem") as step:
                step.say(f"{len(listing)} files")
                written = pool.submit(file_listing.write_listing, listing, incoming / TREE)
                make_rootfs(
                    incoming / ROOTFS,
                    stacked.trees,
                    listing,
                    self.recipe.free_space_mib,
                    epoch,
                    self.scratch / "rootfs",
                )
                written.result()
            with self.steps.step("image"):
                for name in (KERNEL, INITRD):
                    shutil.copyfile(kernel_folder / name, incoming / name)
                (incoming / CMDLINE).write_text(" ".join(self.recipe.kernel.cmdline) + "\n")
                record = self._record(incoming, layers, listing, tools)
                (incoming / RECORD).write_text(record.model_dump_json(indent=1))
                # Here, since reading CycloneDX's models costs what a build of nothing may not.
                from polydev.image.sbom import sbom_json

                (incoming / SBOM).write_text(sbom_json(record, self.recipe.suite))
                return self.store.add(incoming, record)

    def _record(
        self,
        incoming: Path,
        layers: Sequence[BuiltLayer],
        listing: Sequence[file_listing.Entry],
        tools: dict[str, str],
    ) -> ImageRecord:
        files = {name: file_entry(incoming / name) for name in BOOT_FILES}
        packages = {package for built in layers for package in built.packages}
        kernel = next(built for built in layers if built.plan.name == KERNEL_LAYER)
        return ImageRecord(
            digest=manifest_digest({name: entry.sha256 for name, entry in files.items()}),
            recipe=self.recipe.name,
            created_at=datetime.now(timezone.utc),
            source_date_epoch=self.recipe.source_date_epoch,
            kernel_version=kernel.plan.unpacked[0].version,
            files=files,
            content_bytes=sum(entry["size"] for entry in listing),
            layers=[
                LayerEntry(name=built.plan.name, id=built.plan.id, seconds=built.seconds)
                for built in layers
            ],
            packages=sorted(packages, key=lambda package: (package.kind, package.name)),
            builder={"polydev": __version__, **tools},
            providers=providers_in([built.plan for built in layers]),
        )


def file_entry(path: Path) -> FileEntry:
    return FileEntry(
        sha256=file_sha256(path),
        size_bytes=path.stat().st_size,
        allocated_bytes=file_listing.allocated_bytes(path),
    )


def tool_versions() -> dict[str, str]:
    """Return the versions of the programs whose output becomes part of an image."""
    shown = run(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *TOOLS]).stdout
    return dict(line.split(" ", 1) for line in shown.splitlines())


@contextmanager
def _build_lock(cache: Path, steps: Steps) -> Iterator[None]:
    """Allow one build at a time on a cache; a second one reports that it waits."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            steps.note(f"waiting for another build, {lock.read().strip()}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


@contextmanager
def _space_errors(cache: Path) -> Iterator[None]:
    """Turn any error that a full disk causes into one that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_space(cache) from error
    except (BuildError, CommandError) as error:
        if not any(words in error.message.casefold() for words in NO_SPACE):
            raise
        raise _no_space(cache) from error


@contextmanager
def _usual_modes() -> Iterator[None]:
    """Set the usual umask, so that files of an image always have the same modes."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def _no_space(cache: Path) -> BuildError:
    free = shutil.disk_usage(cache).free // (1 << 20)
    return BuildError(
        f"no space left while building below {cache} ({free} MiB free now; a build needs 8 GiB)",
        "free space (./inv golden.prune), or set POLYDEV_CACHE and POLYDEV_STORE to another disk",
    )
