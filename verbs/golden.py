"""golden.*: build, verify, promote and roll back images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from invoke.context import Context

from polydev.cli import answer, edge, megabytes, require_at_least, task
from polydev.image_layout import ROOTFS
from polydev.settings import Settings
from verbs.paths_and_help import IMAGE_HELP, JSON_HELP, RECIPE, RECIPE_HELP, SPECS

if TYPE_CHECKING:
    from polydev.image.store import ImageStore, ListedImage


def open_store() -> ImageStore:
    from polydev.image.store import ImageStore

    return ImageStore(Settings.from_environment().store)


def _image_line(image: ListedImage) -> str:
    notes = ["previous"] * image.is_previous + ["in use"] * image.in_use
    shown = f"{image.digest[:12]}  {image.created_at:%Y-%m-%d %H:%M}  {image.state:<9}"
    shown += f"{megabytes(image.rootfs_allocated_bytes):>9}  {image.recipe}  {', '.join(notes)}"
    return shown.rstrip() + (f"\n              {image.cause}" if image.cause else "")


@task(
    help={
        "recipe": RECIPE_HELP,
        "no_cache": "build every layer again",
        "refresh": "update the package lists even if they are less than an hour old",
        "offline": "use the package lists of the last build",
        "json": JSON_HELP,
    }
)
@edge
def build(
    context: Context,
    recipe: str = str(RECIPE),
    no_cache: bool = False,
    refresh: bool = False,
    offline: bool = False,
    json: bool = False,
) -> None:
    """Build the image of a recipe; unchanged layers are not built again."""
    from polydev.image.build import BuildOptions, build
    from polydev.image.recipe import load_recipe
    from polydev.progress import Steps

    result = build(
        load_recipe(Path(recipe)),
        Settings.from_environment(),
        open_store(),
        Steps(),
        BuildOptions(no_cache=no_cache, refresh=refresh, offline=offline),
    )
    record = result.record
    size = megabytes(record.files[ROOTFS].allocated_bytes)
    what = "built" if result.changed else "unchanged:"
    answer(
        {
            "digest": record.digest,
            "changed": result.changed,
            "seconds": round(result.seconds, 3),
            "rootfsSha256": record.files[ROOTFS].sha256,
            "rootfsBytes": record.files[ROOTFS].allocated_bytes,
            "layers": [layer.model_dump() for layer in record.layers],
        },
        as_json=json,
        text=f"{what} image {record.digest[:12]}, {size}, {result.seconds:.1f} s",
    )


@task(
    positional=["image"],
    help={
        "image": IMAGE_HELP,
        "deadline": "seconds until a boot that is not ready counts as failed (default: 60 or, "
        "without KVM, 240)",
        "json": JSON_HELP,
    },
)
@edge
def verify(context: Context, image: str, deadline: float = 0.0, json: bool = False) -> None:
    """Boot this image and run all specs against it; only a verified image can be promoted."""
    from polydev.image.verify import VerifyOptions, verify
    from polydev.progress import Steps

    require_at_least(0, "deadline", deadline)
    store = open_store()
    record = verify(
        store.resolve(image),
        Settings.from_environment(),
        store,
        SPECS,
        Steps(),
        VerifyOptions(deadline_seconds=deadline or None),
    )
    seen = record.verification
    assert seen is not None
    passed = sum(result.outcome == "passed" for result in seen.specs)
    ready = seen.boot_timings_seconds["ready"]
    answer(
        {"digest": record.digest, **seen.model_dump(mode="json")},
        as_json=json,
        text=f"verified image {record.digest[:12]}: {passed} specs passed, ready after "
        f"{ready:.1f} s under {seen.accelerator}, {seen.seconds:.1f} s in all",
    )


@task(positional=["image"], help={"image": IMAGE_HELP, "json": JSON_HELP})
@edge
def promote(context: Context, image: str, json: bool = False) -> None:
    """Make a verified image the golden one."""
    store = open_store()
    change = store.promote(store.resolve(image))
    was = f", before it {change.was[:12]}" if change.was and change.changed else ""
    done = "is golden now" if change.changed else "is golden already"
    answer(change, as_json=json, text=f"image {change.digest[:12]} {done}{was}")


@task(help={"json": JSON_HELP})
@edge
def rollback(context: Context, json: bool = False) -> None:
    """Make the previous image golden again."""
    change = open_store().rollback()
    answer(
        change,
        as_json=json,
        text=f"image {change.digest[:12]} is golden again; before it {(change.was or '')[:12]}",
    )


@task(name="list", help={"json": JSON_HELP})
@edge
def list_images(context: Context, json: bool = False) -> None:
    """List the images in the store, newest first."""
    images = open_store().images()
    answer(
        [image.model_dump(mode="json") for image in images],
        as_json=json,
        text="\n".join(map(_image_line, images)) or "no images yet: ./inv golden.build",
    )


@task(positional=["image"], help={"image": IMAGE_HELP, "json": JSON_HELP})
@edge
def show(context: Context, image: str, json: bool = False) -> None:
    """Show an image: layers, packages, sizes, specs, boot timings."""
    store = open_store()
    record = store.record(store.resolve(image))
    seen = record.verification
    lines = [f"image {record.digest}", f"recipe {record.recipe}, kernel {record.kernel_version}"]
    lines += [f"  layer {layer.name:<10} {layer.id[:12]}" for layer in record.layers]
    lines += [
        f"  {name:<12} {megabytes(entry.allocated_bytes):>9}  sha256 {entry.sha256[:12]}"
        for name, entry in record.files.items()
    ]
    lines.append(f"{len(record.packages)} packages (--json lists them)")
    if seen is None:
        lines.append("never verified")
    else:
        result = "passed" if seen.passed else f"failed: {seen.cause}"
        lines.append(f"verified {seen.at:%Y-%m-%d %H:%M} under {seen.accelerator}: {result}")
        stages = ", ".join(f"{name} {s:.1f} s" for name, s in seen.boot_timings_seconds.items())
        lines.append(f"boot: {stages}")
    answer(record, as_json=json, text="\n".join(lines))


@task(positional=["old", "new"], help={"old": IMAGE_HELP, "new": IMAGE_HELP, "json": JSON_HELP})
@edge
def diff(context: Context, old: str, new: str, json: bool = False) -> None:
    """Compare two images: packages, files, sizes."""
    from polydev.image.file_diff import tree_diff
    from polydev.image_diff import diff

    store = open_store()
    before, after = store.resolve(old), store.resolve(new)
    files = tree_diff(store.path(before), store.path(after))
    found = diff(store.record(before), store.record(after), files)
    answer(found, as_json=json, text=found.as_text())


@task(
    help={
        "keep": "how many of the newest other images to keep (default: 2)",
        "dry_run": "only show what would be removed",
        "json": JSON_HELP,
    }
)
@edge
def prune(context: Context, keep: int = 2, dry_run: bool = False, json: bool = False) -> None:
    """Remove images that are not golden, previous, in use or among the newest.

    Also removes cached layers that no image needs, in any store that this cache was used for.
    """
    from polydev.image.layer_pruning import prune_cache
    from polydev.processes import orphans
    from polydev.vm.temp_folders import abandoned_temp_folders

    require_at_least(0, "keep", keep)
    store = open_store()
    pruned = store.prune(keep, dry_run=dry_run)
    cache = Settings.from_environment().cache
    layers, layer_bytes = prune_cache(cache, store, going=pruned.removed, dry_run=dry_run)
    folders = abandoned_temp_folders(remove=not dry_run)
    left = orphans()
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} image {digest[:12]}" for digest in pruned.removed]
    lines += [f"kept {image.digest[:12]}: {image.reason}" for image in pruned.kept]
    lines += [f"{verb} layer {layer[:12]}" for layer in layers]
    lines += [f"{verb} {folder}, left by a killed process" for folder in folders]
    lines += [f"a killed process left {orphan}; kill -KILL {orphan.pid}" for orphan in left]
    freed = pruned.freed_bytes + layer_bytes
    lines.append(f"{megabytes(freed)} {'to be ' if dry_run else ''}freed")
    found = pruned.model_dump(mode="json") | {
        "layers": layers,
        "freedBytes": freed,
        "scratchFolders": [str(folder) for folder in folders],
        "orphans": [{"pid": orphan.pid, "argv": orphan.argv} for orphan in left],
    }
    answer(found, as_json=json, text="\n".join(lines))
