"""Check the order in which files are synced and renamed: what survives a power cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record `sync PATH` of files and folders, and `name PATH` when something takes that path."""
    done: list[str] = []
    sync, link, replace = os.fsync, os.link, Path.replace

    def syncing(descriptor: int) -> None:
        done.append(f"sync {os.readlink(f'/proc/self/fd/{descriptor}')}")
        sync(descriptor)

    def linking(source: Path, target: Path) -> None:
        done.append(f"name {target}")
        link(source, target)

    def replacing(path: Path, target: Path) -> Path:
        done.append(f"name {target}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "link", linking)
    monkeypatch.setattr(Path, "replace", replacing)
    return done
