"""Errors of verbs: real processes of ./inv, each ending with one clear message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from polydev.processes import Completed
from polydev.settings import Settings
from tests.inv import ROOT, Inv

RECIPE = ROOT / "golden" / "recipe.yaml"
# No rights of root except to read the .venv and its Python in any folder.
AS_NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
WITHOUT_NETWORK = ("unshare", "--net")


def with_small_disk(mebibytes: int, folder: Path) -> Sequence[str]:
    """A wrapper for a command that sees `folder` as a small disk of its own."""
    mount = f'mount -t tmpfs -o size={mebibytes}m none "$0"; exec "$@"'
    return ["unshare", "--mount", "--propagation=private", "sh", "-ec", mount, str(folder)]


def message(done: Completed) -> str:
    """Check that a verb failed with one message and a next step; return the message."""
    assert done.status == 1, done
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    assert done.stderr.count("\nnext:  ") == 1, done.stderr
    shown = done.stderr[done.stderr.index("error: ") :]
    text, hint = shown.removeprefix("error: ").split("\nnext:  ")
    assert text.strip()
    assert hint.strip()
    return text


@pytest.fixture
def fresh_inv(inv: Inv, tmp_path: Path) -> Inv:
    """./inv on a machine that has built nothing yet."""
    (tmp_path / "cache").mkdir()
    return Inv(Settings(store=inv.settings.store, cache=tmp_path / "cache", state=tmp_path))


def extending_recipe(folder: Path, more: str) -> Path:
    """Write a recipe that extends the browser VM's."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"extends: {RECIPE}\n{more}")
    return recipe


def test_unknown_recipe_keys_are_all_reported_with_paths(inv: Inv, tmp_path: Path) -> None:
    recipe = extending_recipe(tmp_path, "colour: red\nkernel: {speed: fast}\n")
    lines = message(inv("golden.build", "--recipe", recipe)).splitlines()
    assert sorted(lines) == [
        f"{recipe}: colour: there is no such key",
        f"{recipe}: kernel.speed: there is no such key",
    ]


def test_missing_recipe_file_is_named(inv: Inv, tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert str(missing) in message(inv("golden.build", "--recipe", missing))


@pytest.mark.parametrize("key", ["packages", "unpack"])
def test_unknown_package_is_reported_with_its_layer(inv: Inv, tmp_path: Path, key: str) -> None:
    layer = f"layers: [{{name: extras, {key}: [novnc, no-such-package]}}]\n"
    text = message(
        inv("golden.build", "--recipe", extending_recipe(tmp_path, f"name: mine\n{layer}"))
    )
    assert text == "recipe mine, layer extras: Debian bookworm has no package no-such-package"


@pytest.mark.parametrize("verb", ["golden.build", "up"])
def test_verbs_that_need_root_say_so(inv: Inv, verb: str) -> None:
    assert "must run as root" in message(inv(verb, wrapper=AS_NOBODY))


def test_build_without_network_names_the_debian_archive(fresh_inv: Inv) -> None:
    text = message(fresh_inv("golden.build", wrapper=WITHOUT_NETWORK))
    assert "cannot reach the Debian archive" in text
    assert "bookworm" in text


@pytest.mark.parametrize("mebibytes", [16, 320], ids=["for-lists", "for-packages"])
def test_build_on_full_disk_reports_no_space_left(fresh_inv: Inv, mebibytes: int) -> None:
    cache = fresh_inv.settings.cache
    text = message(fresh_inv("golden.build", wrapper=with_small_disk(mebibytes, cache)))
    assert text.startswith(f"no space left while building below {cache}")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["golden.show", "nothing-like-it"],
        ["golden.verify", "nothing-like-it"],
        ["golden.promote", "0123456789ab"],
        ["golden.diff", "nothing-like-it", "golden"],
    ],
    ids=lambda words: words[0],
)
def test_unknown_image_is_named(inv: Inv, words: list[str]) -> None:
    assert message(inv(*words)).startswith(f"no image {words[1]} in {inv.settings.store}")


def test_json_option_prints_errors_as_json_on_stdout(inv: Inv) -> None:
    done = inv("golden.verify", "nothing-like-it", "--json")
    told = json.loads(done.stdout)
    assert set(told) == {"error", "message", "hint"}
    assert (told["error"], told["message"]) == ("image", message(done).rstrip("\n"))


def test_errors_without_json_option_leave_stdout_empty(inv: Inv) -> None:
    assert inv("golden.show", "nothing-like-it").stdout == ""
