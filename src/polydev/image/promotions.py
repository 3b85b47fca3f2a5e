"""The promotions of an image store: which image is golden, and which images were before it.

A promotion is written completely before the golden link names it, and the link is replaced by one
rename. So a process that is killed at any point leaves the link on a complete promotion, the old
one or the new one. Promotions that cannot be reached from the golden link do not count: a killed
process or a rollback left them behind.

This module knows links and numbers only. `image_folder` says whether an image may be promoted, and
`store` has the verbs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pydantic import ValidationError

from polydev.durable_files import UNFINISHED_TEXT, sync, write_text_durably
from polydev.errors import ImageError
from polydev.image.store_lock import Actor, this_actor
from polydev.image_layout import (
    GOLDEN_LINK,
    IMAGES,
    PROMOTIONS,
    golden_target,
    promotion_file,
    promotion_link,
    promotion_number,
)
from polydev.image_record import RecordModel


class Promotion(RecordModel):
    """One promotion; `previous` is the number of the one that was golden before it."""

    number: int
    digest: str
    previous: int | None
    at: datetime
    by: Actor


@dataclass(frozen=True)
class Promotions:
    """The promotions of the store at `root`."""

    root: Path

    @property
    def golden_link(self) -> Path:
        return self.root / GOLDEN_LINK

    def golden(self) -> Promotion | None:
        """The promotion that the golden link names; None before the first one.

        Raises ImageError if the link is not one of ours or its promotion cannot be read.
        """
        link = self.golden_link
        hint = f"move {link} out of the way, then promote an image"
        try:
            target = link.readlink().as_posix()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ImageError(f"{link} is not a link to a promotion", hint) from error
        number = promotion_number(target)
        if number is None:
            raise ImageError(f"{link} points to {target}, which is not a promotion", hint)
        return self.read(number)

    def read(self, number: int) -> Promotion:
        """Return a promotion. Raises ImageError if its link or file is missing, or they differ."""
        link, file = promotion_link(self.root, number), promotion_file(self.root, number)
        hint = f"remove {self.golden_link} and promote an image: this starts a new history"
        try:
            promotion = Promotion.model_validate_json(file.read_bytes())
            linked = link.readlink().name
        except (OSError, ValidationError) as error:
            raise ImageError(f"promotion {number} is damaged: {file}: {error}", hint) from error
        # Numbers only grow. A `previous` that did not would make the history a circle.
        is_consistent = (promotion.number, promotion.digest) == (number, linked)
        if not is_consistent or (promotion.previous or 0) >= number:
            raise ImageError(f"promotion {number} is damaged: {file} and {link} disagree", hint)
        return promotion

    def history(self) -> list[Promotion]:
        """The golden promotion and all before it, newest first; empty before the first one."""
        golden = self.golden()
        found = [golden] if golden else []
        while found and (before := found[-1].previous) is not None:
            found.append(self.read(before))
        return found

    def add(self, digest: str, previous: int | None) -> Promotion:
        """Write a promotion with a new number. The golden link does not name it yet."""
        folder = self.root / PROMOTIONS
        folder.mkdir(exist_ok=True)
        numbers = (_number(path) for path in folder.iterdir())
        promotion = Promotion(
            number=max((found for found in numbers if found is not None), default=0) + 1,
            digest=digest,
            previous=previous,
            at=datetime.now(timezone.utc),
            by=this_actor(),
        )
        file = promotion_file(self.root, promotion.number)
        write_text_durably(file, f"{promotion.model_dump_json(indent=2)}\n")
        promotion_link(self.root, promotion.number).symlink_to(f"../{IMAGES}/{digest}")
        sync(folder)
        return promotion

    def make_golden(self, number: int) -> None:
        """Let the golden link name a promotion: the one step that changes what is golden."""
        fresh = self._unfinished_link()
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(golden_target(number))
        fresh.replace(self.golden_link)
        sync(self.root)

    def remove_unreachable(self) -> None:
        """Remove the promotions that the golden link does not reach, and unfinished files."""
        reachable = {promotion.number for promotion in self.history()}
        self._unfinished_link().unlink(missing_ok=True)
        folder = self.root / PROMOTIONS
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            number = _number(path)
            if path.suffix == UNFINISHED_TEXT or (number is not None and number not in reachable):
                path.unlink()

    def _unfinished_link(self) -> Path:
        return self.root / f".{GOLDEN_LINK}{UNFINISHED_TEXT}"


def _number(path: Path) -> int | None:
    found = re.fullmatch(r"(\d+)(\.json)?", path.name)
    return int(found[1]) if found else None
