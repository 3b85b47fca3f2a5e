"""Folders that a layer created again: which of them hide files on purpose.

Whether overlayfs marks a new folder as opaque depends on how the kernel has it; what becomes of a
mark is the same everywhere. `test_build_inside.py` stacks layers that were really built.
"""

from __future__ import annotations

from pathlib import Path
from stat import S_IMODE
from typing import Any

import pytest

from polydev.image.guest_paths import LayerConflict
from polydev.image.layer_stack import FOLDER_MODE, Stack, _Change, _rearrange, _revealed


def entry(path: str, kind: str = "file") -> dict[str, Any]:
    return {"path": path, "type": kind, "size": 1}


@pytest.fixture
def below() -> Stack:
    """Two layers below a third, whose build saw only the first."""
    stack = Stack()
    folders = [entry("/opt", "dir"), entry("/opt/app", "dir"), entry("/opt/other", "dir")]
    folders += [entry("/srv", "dir"), entry("/srv/empty", "dir")]
    stack.add(Path("seen"), [*folders, entry("/opt/app/known"), entry("/opt/file")], "seen")
    stack.add(Path("unseen"), [entry("/opt/app/new"), entry("/srv/new")], "unseen")
    return stack


def seen(stack: Stack) -> set[str]:
    return {path for path, owner in stack.owners.items() if owner == "seen"}


def test_replaced_folder_hides_files_known_to_its_layer(below: Stack) -> None:
    known = seen(below) | {"/opt/app/new"}
    assert _revealed({"opt/app"}, below, known) == frozenset()


def test_replaced_folder_reveals_files_unknown_to_its_layer(below: Stack) -> None:
    assert _revealed({"srv"}, below, seen(below)) == {"srv"}
    # Hiding an empty folder loses nothing.
    assert _revealed({"opt/other"}, below, seen(below)) == frozenset()
    assert _revealed(set(), below, seen(below)) == frozenset()


def test_replaced_folder_with_known_and_unknown_files_is_refused(below: Stack) -> None:
    with pytest.raises(LayerConflict, match="/opt/app was replaced by the layer"):
        _revealed({"opt/app", "srv"}, below, seen(below))


def folder(path: str, mode: int, owner: int, mtime: int) -> dict[str, Any]:
    return {"path": path, "type": "dir", "size": 0} | {
        "mode": mode,
        "uid": owner,
        "gid": owner,
        "mtime": mtime,
    }


def test_parent_folders_keep_their_state_from_below(tmp_path: Path) -> None:
    """If a link redirects a layer's files, the folders there keep the attributes of the image."""
    source, to = tmp_path / "source", tmp_path / "to"
    (source / "own").mkdir(parents=True)
    (source / "own").chmod(0o750)
    (source / "own/file").write_text("text")
    (source / "same").mkdir()
    below = Stack()
    below.add(
        Path("below"),
        [folder("/there", 0o711, 7, 40), folder("/same", 0o700, 8, 50)],
        "below",
    )
    landed = {"own": "there/own", "own/file": "there/own/file", "same": "same"}
    landed |= {"new": "none/new"}
    (source / "new").write_text("text")
    change = _Change(landed, frozenset(), frozenset({"same"}))
    _rearrange(source, to, change, below, epoch=100)
    states = {name: (to / name).stat() for name in ("there", "there/own", "same", "none")}
    found = {name: (oct(S_IMODE(each.st_mode)), each.st_uid) for name, each in states.items()}
    assert found == {
        "there": ("0o711", 7),
        "there/own": ("0o750", 0),
        "same": ("0o700", 8),  # kept: as it is below
        "none": (oct(FOLDER_MODE), 0),
    }
    assert states["there"].st_mtime == 40
    assert (to / "there/own/file").read_text() == "text"
