"""A build before its first layer: existing images, and a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polydev.errors import BuildError, CommandError, ConfigError
from polydev.image import build as build_module
from polydev.image.build import BuildOptions, _Builder, _space_errors
from polydev.image.recipe import load_recipe
from polydev.image.store import ImageStore
from polydev.image_layout import ROOTFS, SBOM
from polydev.progress import Steps
from polydev.settings import Settings
from tests.images import contents, record_of

RECIPE = Path(__file__).resolve().parents[2] / "golden" / "recipe.yaml"


@pytest.mark.parametrize(
    ("verified", "is_damaged", "is_taken"),
    [(None, True, True), (True, True, True), (False, False, True), (False, True, False)],
)
def test_known_image_is_reused_unless_it_is_damaged(
    tmp_path: Path, verified: bool | None, is_damaged: bool, is_taken: bool
) -> None:
    store, cache = ImageStore(tmp_path / "store"), tmp_path / "cache"
    places = Settings(store=store.root, cache=cache, state=tmp_path / "state")
    builder = _Builder(load_recipe(RECIPE), places, store, Steps(), BuildOptions(offline=True))
    assert builder._known_image("none") is None
    with store.new_incoming() as incoming:
        for name, data in contents("a").items():
            (incoming / name).write_bytes(data)
        (incoming / SBOM).write_text("{}")
        record = store.add(incoming, record_of("a", verified=verified))
    (cache / "assemblies").mkdir(parents=True)
    for name, digest in {"made": record.digest, "pruned": "0" * 64}.items():
        (cache / "assemblies" / name).write_text(digest)
    if is_damaged:
        (store.path(record.digest) / ROOTFS).write_text("torn")
    assert builder._known_image("made") == (record if is_taken else None)
    assert builder._known_image("pruned") is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no"),
        OSError(errno.EDQUOT, "no"),
        BuildError("layer web: npm error No space left on device"),
        CommandError(["apt-get"], 100, "E: You don't have enough free space in /x"),
    ],
)
def test_full_disk_is_reported_with_a_hint(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(BuildError, match=f"no space left while building below {tmp_path}") as told,
        _space_errors(tmp_path),
    ):
        raise error
    assert "POLYDEV_CACHE" in str(told.value.hint)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), BuildError("layer web: no")])
def test_other_build_errors_are_raised_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as told, _space_errors(tmp_path):
        raise error
    assert told.value is error


class TestRun:
    """The steps of a build with fake layers and images."""

    @pytest.fixture
    def builder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        places = Settings(store=tmp_path / "s", cache=tmp_path / "c", state=tmp_path / "state")
        (tmp_path / "c").mkdir()
        made: Any = _Builder(
            load_recipe(RECIPE), places, ImageStore(places.store), Steps(), BuildOptions()
        )
        made.log = []
        record = record_of("a")
        layers: list[Any] = [
            SimpleNamespace(plan=SimpleNamespace(name="base"), seconds=None),
            SimpleNamespace(plan=SimpleNamespace(name="web"), seconds=7.0),
        ]
        monkeypatch.setattr(build_module, "tool_versions", dict)
        monkeypatch.setattr(made, "_plan", lambda _: [])
        monkeypatch.setattr(made, "_build_layers", lambda _: made.log.append("layers") or layers)
        monkeypatch.setattr(made, "_assemble", lambda *_: made.log.append("image") or record)
        monkeypatch.setattr(made, "_known_image", lambda _: made.known)
        monkeypatch.setattr(
            made.archive, "refresh", lambda *, force: made.log.append(f"refresh {force}")
        )
        made.known = None
        made.record = record
        return made

    def test_build_makes_layers_and_image_and_records_the_assembly(self, builder: Any) -> None:
        builder.scratch.mkdir()
        (builder.scratch / "of a build that was killed").touch()
        assert builder.run() == (builder.record, ("web",))
        assert builder.log == ["refresh False", "layers", "image"]
        assert not builder.scratch.exists()
        (assembly,) = builder.assemblies.iterdir()
        assert assembly.read_text() == builder.record.digest
        assert assembly.name == builder._assembly_id([])

    def test_known_image_is_not_built_again(self, builder: Any) -> None:
        builder.known = record_of("b")
        assert builder.run() == (builder.known, None)
        assert builder.log == ["refresh False"]
        builder.options = BuildOptions(no_cache=True, refresh=True)
        assert builder.run() == (builder.record, ("web",))
        assert builder.log[1:] == ["refresh True", "layers", "image"]

    def test_offline_build_needs_package_lists(self, builder: Any) -> None:
        builder.options = BuildOptions(offline=True)
        with pytest.raises(BuildError, match="--offline needs the package lists"):
            builder.run()
        assert builder.log == []
        builder.archive.sources.parent.mkdir()
        builder.archive.sources.touch()
        builder.run()
        assert builder.log == ["layers", "image"]

    def test_assembly_id_covers_all_inputs(self, builder: Any) -> None:
        plan: Any = SimpleNamespace(id="abc")
        ids = {builder._assembly_id([]), builder._assembly_id([plan])}
        kernel = builder.recipe.kernel
        more = {"free_space_mib": 9, "kernel": kernel.model_copy(update={"cmdline": ["x"]})}
        for key, value in more.items():
            builder.recipe = load_recipe(RECIPE).model_copy(update={key: value})
            ids.add(builder._assembly_id([]))
        assert len(ids) == 4


def test_build_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    places = Settings(store=tmp_path, cache=tmp_path, state=tmp_path)
    with pytest.raises(ConfigError, match="must run as root"):
        build_module.build(
            load_recipe(RECIPE), places, ImageStore(tmp_path), Steps(), BuildOptions()
        )
    assert list(tmp_path.iterdir()) == []


def test_build_runs_with_umask_022(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o077)
    try:
        with build_module._usual_modes():
            assert os.umask(0o022) == 0o022
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
