"""Compare two images by their records: packages, layers, sizes, settings. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

from polydev.image_layout import ROOTFS
from polydev.image_record import ImageRecord, Package, RecordModel


class PackageChange(RecordModel):
    """A package; `old` is None if it was added, `new` if it was removed."""

    kind: str
    name: str
    old: str | None
    new: str | None


class SettingChange(RecordModel):
    """Another value of the record, such as the kernel's version; None if an image lacks it."""

    name: str
    old: str | None
    new: str | None


class LayerChange(RecordModel):
    """A layer whose id changed; `old` or `new` is None if that image lacks the layer."""

    name: str
    old: str | None
    new: str | None


class FileChange(RecordModel):
    """A changed path of both images; `fields` are the differences, such as mode or sha256."""

    path: str
    fields: list[str]


class TreeDiff(RecordModel):
    added: list[str]
    removed: list[str]
    changed: list[FileChange]


class ImageDiff(RecordModel):
    """The changes from image `old` to image `new`; sizes in bytes, negative if it shrank.

    `files` is None if an image has no listing of its files.
    """

    old: str
    new: str
    packages_added: list[PackageChange]
    packages_removed: list[PackageChange]
    packages_changed: list[PackageChange]
    content_change_bytes: int
    rootfs_allocated_change_bytes: int
    layers_changed: list[LayerChange]
    settings_changed: list[SettingChange]
    files: TreeDiff | None

    def as_text(self) -> str:
        """Return the changes as text, one per line; sizes in MB."""
        lines = [f"{self.old[:12]} → {self.new[:12]}"]
        lines += [f"{each.name} {each.old} → {each.new}" for each in self.settings_changed]
        lines += [f"layer {layer.name}" for layer in self.layers_changed]
        lines += [f"+ {each.kind} {each.name} {each.new}" for each in self.packages_added]
        lines += [f"- {each.kind} {each.name} {each.old}" for each in self.packages_removed]
        lines += [
            f"~ {each.kind} {each.name} {each.old} → {each.new}" for each in self.packages_changed
        ]
        if self.files is not None:
            lines += [f"+ {path}" for path in self.files.added]
            lines += [f"- {path}" for path in self.files.removed]
            lines += [f"~ {each.path} ({', '.join(each.fields)})" for each in self.files.changed]
        lines.append(f"content {self.content_change_bytes / 1e6:+,.1f} MB")
        return "\n".join(lines)


def diff(old: ImageRecord, new: ImageRecord, files: TreeDiff | None = None) -> ImageDiff:
    """Compare two records; `files` is what `tree_diff` found, if it was asked."""
    packages = _package_changes(old.packages, new.packages)
    return ImageDiff(
        old=old.digest,
        new=new.digest,
        packages_added=[each for each in packages if each.old is None],
        packages_removed=[each for each in packages if each.new is None],
        packages_changed=[each for each in packages if None not in (each.old, each.new)],
        content_change_bytes=new.content_bytes - old.content_bytes,
        rootfs_allocated_change_bytes=_rootfs_bytes(new) - _rootfs_bytes(old),
        layers_changed=_layer_changes(old, new),
        settings_changed=_setting_changes(old, new),
        files=files,
    )


def _rootfs_bytes(record: ImageRecord) -> int:
    return record.files[ROOTFS].allocated_bytes


def _package_changes(old: Iterable[Package], new: Iterable[Package]) -> list[PackageChange]:
    # A name may be there in several versions (npm): those that both images have cancel out.
    before, after = _versions(old), _versions(new)
    return [
        PackageChange(kind=kind, name=name, old=gone, new=come)
        for kind, name in sorted(before.keys() | after.keys())
        for gone, come in zip_longest(
            sorted(before.get((kind, name), set()) - after.get((kind, name), set())),
            sorted(after.get((kind, name), set()) - before.get((kind, name), set())),
        )
    ]


def _versions(packages: Iterable[Package]) -> dict[tuple[str, str], set[str]]:
    versions: dict[tuple[str, str], set[str]] = {}
    for package in packages:
        versions.setdefault((package.kind, package.name), set()).add(package.version)
    return versions


def _layer_changes(old: ImageRecord, new: ImageRecord) -> list[LayerChange]:
    before = {layer.name: layer.id for layer in old.layers}
    after = {layer.name: layer.id for layer in new.layers}
    return [
        LayerChange(name=name, old=before.get(name), new=after.get(name))
        for name in {**after, **before}
        if before.get(name) != after.get(name)
    ]


def _setting_changes(old: ImageRecord, new: ImageRecord) -> list[SettingChange]:
    before, after = _settings(old), _settings(new)
    return [
        SettingChange(name=name, old=before.get(name), new=after.get(name))
        for name in {**after, **before}
        if before.get(name) != after.get(name)
    ]


def _settings(record: ImageRecord) -> dict[str, str]:
    """Return the choices for the image, apart from its contents."""
    return {
        "recipe": record.recipe,
        "kernel": record.kernel_version,
        "providers": ", ".join(sorted(record.providers or {})),
        **{f"builder {name}": value for name, value in record.builder.items()},
    }
