"""The image store: add images, list them, promote one, roll back, prune.

`polydev.image_layout` says where everything lies. This class has the verbs; they use three modules,
each for one thing on the disk:

    image_folder    images/<digest>/     one image: its users, its record, its files
    promotions      promotions/, golden-rootfs.ext4     which image is golden, and which were
    store_lock      .lock                one verb at a time
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from errno import EEXIST, ENOTEMPTY
from pathlib import Path
from typing import Literal

from polydev.durable_files import sync, write_text_durably
from polydev.errors import ImageError
from polydev.image import image_folder
from polydev.image.image_folder import Hold
from polydev.image.promotions import Promotion, Promotions
from polydev.image.store_lock import WRITE_HINT, store_lock
from polydev.image_layout import BOOT_FILES, IMAGES, INCOMING, RECORD, ROOTFS, image_path
from polydev.image_record import ImageRecord, RecordModel, State

log = logging.getLogger(__name__)

TRASH = ".trash-"
LIST_HINT = "./inv golden.list lists the images"
MAKE_HINT = "./inv golden.build builds an image; ./inv up builds one and makes it golden"


class ListedImage(RecordModel):
    """One image in the list; sizes in bytes. `cause` says why its verification failed."""

    digest: str
    state: State
    is_previous: bool
    in_use: bool
    created_at: datetime
    recipe: str
    kernel_version: str
    content_bytes: int
    rootfs_allocated_bytes: int
    cause: str | None


class GoldenChange(RecordModel):
    """Result of a promotion or a rollback: `digest` is golden now, `was` before it."""

    number: int
    digest: str
    was: str | None
    changed: bool


class KeptImage(RecordModel):
    digest: str
    reason: Literal["golden", "previous", "in use", "recent"]


class Pruned(RecordModel):
    """Result of a prune, or of a dry run; `leftovers` are folders of builds that were killed."""

    removed: list[str]
    kept: list[KeptImage]
    leftovers: list[str]
    freed_bytes: int
    dry_run: bool


@dataclass(frozen=True)
class ImageStore:
    """The images under `root`. Methods raise ImageError for everything that they refuse."""

    root: Path

    @property
    def promotions(self) -> Promotions:
        return Promotions(self.root)

    @property
    def golden_link(self) -> Path:
        """The link to the golden root filesystem; it exists after the first promotion."""
        return self.promotions.golden_link

    def golden(self) -> str | None:
        """The golden image's digest, or None before the first promotion."""
        golden = self.promotions.golden()
        return golden.digest if golden else None

    def path(self, digest: str) -> Path:
        """The folder of an image, whether it exists or not."""
        return image_path(self.root, digest)

    def digests(self) -> list[str]:
        """Every image in the store, by name."""
        folder = self.root / IMAGES
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(name for name in names if re.fullmatch(r"[0-9a-f]{64}", name))

    def record(self, digest: str) -> ImageRecord:
        """Return the record of an image."""
        if not self.path(digest).is_dir():
            raise ImageError(f"no image {digest[:12]} in {self.root}", LIST_HINT)
        return image_folder.read_record(self.path(digest))

    def write_record(self, record: ImageRecord) -> None:
        """Replace an image's record in one step, as a verification does."""
        if not self.path(record.digest).is_dir():
            raise ImageError(f"no image {record.digest[:12]} in {self.root}", LIST_HINT)
        write_text_durably(self.path(record.digest) / RECORD, image_folder.record_text(record))

    def images(self) -> list[ListedImage]:
        """Every image, newest first."""
        promoted = [each.digest for each in self.promotions.history()]
        listed = []
        for record in self._records():
            verification = record.verification
            state: State = "built"
            if record.digest in promoted:
                state = "promoted" if record.digest == promoted[0] else "retired"
            elif verification is not None:
                state = "verified" if verification.passed else "failed"
            listed.append(
                ListedImage(
                    digest=record.digest,
                    state=state,
                    is_previous=promoted[1:2] == [record.digest],
                    in_use=self.in_use(record.digest),
                    created_at=record.created_at,
                    recipe=record.recipe,
                    kernel_version=record.kernel_version,
                    content_bytes=record.content_bytes,
                    rootfs_allocated_bytes=record.files[ROOTFS].allocated_bytes,
                    cause=verification.cause if verification else None,
                )
            )
        return listed

    def layer_ids(self, without: Collection[str] = ()) -> set[str]:
        """Ids of the layers that its images are made of, but for those `without`."""
        records = [each for each in self._records() if each.digest not in without]
        return {layer.id for record in records for layer in record.layers}

    def _records(self) -> list[ImageRecord]:
        found = [self._record_unless_pruned(digest) for digest in self.digests()]
        records = [record for record in found if record is not None]
        return sorted(records, key=lambda record: (record.created_at, record.digest), reverse=True)

    def _record_unless_pruned(self, digest: str) -> ImageRecord | None:
        try:
            return image_folder.read_record(self.path(digest))
        except ImageError:
            if self.path(digest).is_dir():
                raise
            return None

    def resolve(self, name: str) -> str:
        """Return the digest that a name stands for.

        A name is `golden`, `previous`, `latest`, or the first 6 or more hex digits of a digest.
        Raises ImageError if it stands for no image or for several.
        """
        if name == "latest":
            records = self._records()
            if not records:
                raise ImageError(f"no image in {self.root}", MAKE_HINT)
            return records[0].digest
        if name in ("golden", "previous"):
            count = 1 if name == "golden" else 2
            promoted = self.promotions.history()[:count]
            if len(promoted) < count:
                hint = LIST_HINT if self.digests() else MAKE_HINT
                raise ImageError(f"there is no {name} image in {self.root}", hint)
            found = [promoted[-1].digest] if self.path(promoted[-1].digest).is_dir() else []
        else:
            wanted = name.lower() if re.fullmatch(r"[0-9a-fA-F]{6,64}", name) else None
            found = [each for each in self.digests() if wanted and each.startswith(wanted)]
        if len(found) > 1:
            candidates = ", ".join(each[:16] for each in found)
            raise ImageError(
                f"{name} is ambiguous: it begins the digests {candidates}",
                "give more digits of the digest",
            )
        if not found:
            known = ", ".join(each[:12] for each in self.digests())
            hint = f"the images are {known}; {LIST_HINT}" if known else MAKE_HINT
            raise ImageError(f"no image {name} in {self.root}", hint)
        return found[0]

    def hold(self, digest: str) -> Hold:
        """Use an image: it is not pruned while the returned file is open in any process.

        A child that gets its `fileno()` as one of `pass_fds` uses the image until it ends.
        """
        try:
            return image_folder.hold(self.path(digest))
        except FileNotFoundError as error:
            raise ImageError(f"no image {digest[:12]} in {self.root}", LIST_HINT) from error

    def in_use(self, digest: str) -> bool:
        """Whether any process uses the image now."""
        try:
            with image_folder.unless_held(self.path(digest)) as free:
                return not free
        except FileNotFoundError:
            return False

    @contextmanager
    def new_incoming(self) -> Iterator[Path]:
        """Yield a fresh folder to make an image in; removed at the end unless `add` took it."""
        folder, hold = self._fresh_incoming()
        try:
            with hold:
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _fresh_incoming(self) -> tuple[Path, Hold]:
        parent = self.root / INCOMING
        try:
            parent.mkdir(parents=True, exist_ok=True)
            while True:
                folder = parent / secrets.token_hex(8)
                folder.mkdir()
                # A prune may remove the folder before it is held.
                with suppress(FileNotFoundError):
                    return folder, image_folder.hold(folder)
        except PermissionError as error:
            raise ImageError(f"cannot write to {parent}", WRITE_HINT) from error

    def add(self, incoming: Path, record: ImageRecord) -> ImageRecord:
        """Make a finished folder of `new_incoming` an image, and return its record.

        If the image is there already, it stays, with its record and verification; only files of
        it that are damaged or missing are taken from the new folder, which has the same image.
        """
        image_folder.check_complete(incoming, record)
        for path in sorted(incoming.rglob("*")):
            # The boot files are large; `promote` syncs them before the golden link moves.
            if not path.is_symlink() and path.name not in BOOT_FILES:
                sync(path)
        # Last, since it also syncs the names of all files in the folder.
        write_text_durably(incoming / RECORD, image_folder.record_text(record))
        target = self.path(record.digest)
        target.parent.mkdir(exist_ok=True)
        while True:
            try:
                incoming.rename(target)
                sync(target.parent)
                return record
            except OSError as error:
                if error.errno not in (EEXIST, ENOTEMPTY):
                    raise
            try:
                hold = image_folder.hold(target)
            except FileNotFoundError:  # pruned just now, so there is room for the new one
                continue
            with hold:
                image_folder.repair(target, incoming, record)
                shutil.rmtree(incoming)
                return image_folder.read_record(target)

    def promote(self, digest: str) -> GoldenChange:
        """Make a verified image golden, after comparing its files with their checksums."""
        with store_lock(self.root, f"promote {digest[:12]}"):
            golden = self.promotions.golden()
            self._require_promotable(digest)
            was = golden.digest if golden else None
            if golden is not None and was == digest:
                return GoldenChange(number=golden.number, digest=digest, was=was, changed=False)
            promotion = self.promotions.add(digest, golden.number if golden else None)
            self.promotions.make_golden(promotion.number)
            log.info("image %s is golden, promotion %d", digest[:12], promotion.number)
            return GoldenChange(number=promotion.number, digest=digest, was=was, changed=True)

    def rollback(self) -> GoldenChange:
        """Make the previous image golden again, after comparing its files with their checksums."""
        with store_lock(self.root, "rollback"):
            history = self.promotions.history()
            if len(history) < 2:
                raise ImageError("there is no previous image to roll back to", LIST_HINT)
            golden, previous = history[:2]
            try:
                self._require_promotable(previous.digest)
            except ImageError as error:
                hint = self._alternative_to(golden.digest, history[2:])
                raise ImageError(f"cannot roll back: {error.message}", hint) from error
            self.promotions.make_golden(previous.number)
            log.info("image %s is golden again", previous.digest[:12])
            return GoldenChange(
                number=previous.number, digest=previous.digest, was=golden.digest, changed=True
            )

    def _require_promotable(self, digest: str) -> None:
        image_folder.require_promotable(self.path(digest), self.record(digest))

    def _alternative_to(self, golden: str, older: list[Promotion]) -> str:
        for each in older:
            with suppress(ImageError):
                if each.digest != golden:
                    self._require_promotable(each.digest)
                    return f"the newest intact older image: ./inv golden.promote {each.digest[:12]}"
        return LIST_HINT

    def prune(self, keep: int = 2, *, dry_run: bool = False) -> Pruned:
        """Remove images that nothing needs, and what killed builds and prunes left behind.

        The golden image, the previous one, those in use and the `keep` newest others stay.
        """
        with store_lock(self.root, "prune"):
            if not dry_run:
                self.promotions.remove_unreachable()
            leftovers, freed_bytes = self._prune_incoming(dry_run)
            history = self.promotions.history()
            kept = [KeptImage(digest=each.digest, reason="golden") for each in history[:1]]
            kept += [KeptImage(digest=each.digest, reason="previous") for each in history[1:2]]
            removed: list[str] = []
            needed = {each.digest for each in kept}
            others = [each.digest for each in self._records() if each.digest not in needed]
            for digest in others:
                if self.in_use(digest):
                    kept.append(KeptImage(digest=digest, reason="in use"))
                elif sum(each.reason == "recent" for each in kept) < keep:
                    kept.append(KeptImage(digest=digest, reason="recent"))
                elif (size := self._remove(self.path(digest), dry_run)) is None:
                    kept.append(KeptImage(digest=digest, reason="in use"))
                else:
                    removed.append(digest)
                    freed_bytes += size
            return Pruned(
                removed=removed,
                kept=kept,
                leftovers=leftovers,
                freed_bytes=freed_bytes,
                dry_run=dry_run,
            )

    def _prune_incoming(self, dry_run: bool) -> tuple[list[str], int]:
        removed: dict[str, int] = {}
        for folder in sorted(path for path in (self.root / INCOMING).glob("*") if path.is_dir()):
            with suppress(FileNotFoundError):  # its build has just removed or added it
                size = self._remove(folder, dry_run)
                if size is not None:
                    removed[folder.name] = size
        return list(removed), sum(removed.values())

    def _remove(self, folder: Path, dry_run: bool) -> int | None:
        """Remove a folder, return the bytes that this frees; None if the folder is in use."""
        trash = self.root / INCOMING / f"{TRASH}{folder.name.removeprefix(TRASH)}"
        with image_folder.unless_held(folder) as free:
            if not free:
                return None
            size_bytes = image_folder.freed_bytes(folder)
            if dry_run:
                return size_bytes
            trash.parent.mkdir(exist_ok=True)
            folder.rename(trash)
            sync(folder.parent)
        try:
            shutil.rmtree(trash)
        except OSError as error:
            raise ImageError(
                f"cannot remove {error.filename}: {error.strerror}", WRITE_HINT
            ) from error
        return size_bytes
