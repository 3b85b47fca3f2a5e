"""Files of others that change our units."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.hosttool.unit_overrides import find

UNITS = ["polydev-dns.service", "microvm@.service", "microvm-slot@.service", "polydev-slots.target"]
ETC, RUN = "etc/systemd/system", "run/systemd/system"


def put(root: Path, name: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize(
    "name",
    [
        f"{ETC}/polydev-dns.service.d/x.conf",
        f"{RUN}/polydev-dns.service.d/x.conf",
        "usr/local/lib/systemd/system/polydev-dns.service.d/x.conf",
        "etc/systemd/system.control/polydev-dns.service.d/50-MemoryMax.conf",
        "run/systemd/system.control/polydev-dns.service",
        f"{ETC}/microvm@.service.d/x.conf",
        f"{ETC}/microvm@3.service.d/x.conf",
        f"{ETC}/microvm@3.service",
        f"{RUN}/microvm@3.service",
        f"{ETC}/microvm-.service.d/x.conf",
        f"{ETC}/polydev-.service.d/x.conf",
        f"{ETC}/polydev-slots.target.d/x.conf",
    ],
)
def test_override_of_our_units_is_found(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    assert find(UNITS, tmp_path) == [f"/{name}"]


def test_masked_unit_is_found(tmp_path: Path) -> None:
    (tmp_path / ETC).mkdir(parents=True)
    (tmp_path / ETC / "microvm@4.service").symlink_to("/dev/null")
    assert find(UNITS, tmp_path) == [f"/{ETC}/microvm@4.service"]


@pytest.mark.parametrize(
    "name",
    [
        *(f"{ETC}/{unit}" for unit in UNITS),
        f"{ETC}/ssh.service.d/polydev.conf",
        f"{ETC}/service.d/x.conf",
        f"{ETC}/microvm@.service.d/x.txt",
        f"{ETC}/polydev-slots.target.wants/microvm-slot@3.service",
        f"{RUN}/polydev-dns.service",  # ours in /etc comes first
        f"{ETC}/other@3.service",
        f"{ETC}/polydev-.socket.d/x.conf",
        f"{ETC}/polydev-dns.service.d",
    ],
)
def test_files_about_other_units_are_ignored(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    assert find(UNITS, tmp_path) == []
