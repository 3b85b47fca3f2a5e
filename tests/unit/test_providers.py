"""Provider files: which are valid, what the guest gets, and the file and key of each error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from invoke.context import Context

from polydev.errors import ConfigError
from polydev.image import provider_tools
from polydev.image.layer_plans import LayerPlan, guest_files, providers_in
from polydev.image.provider_tools import tools_of
from polydev.image.recipe import load_recipe
from polydev.providers import GUEST_FOLDER, by_any_name, guest_json, load_providers
from tests.images import GOLDEN
from tests.unit.test_recipe import plain, write
from verbs import providers
from verbs.paths_and_help import RECIPE

Changes = dict[str, Any]


def small(name: str = "tool", **changes: Any) -> dict[str, Any]:
    """The smallest provider, as YAML gives it."""
    credentials = {"file": ".tool/auth.json", "requires": ["token"], "rotates": False}
    login = {"command": ["tool", "login"]}
    return {"name": name, "label": "A tool", "login": login, "credentials": credentials} | changes


def put(folder: Path, *providers: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for each in providers:
        (folder / f"{each['name']}.yaml").write_text(yaml.safe_dump(each))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_providers(folder)
    return caught.value.message


def test_golden_providers_are_valid() -> None:
    found = load_providers(GOLDEN / "providers")
    assert {"claude", "codex", "gemini"} <= set(found)
    older = {"claude_code": "claude", "codex_cli": "codex", "gemini_cli": "gemini"}
    assert {name: by_any_name(found)[name].name for name in older} == older


def test_guest_json_has_all_keys_of_a_provider(tmp_path: Path) -> None:
    found = load_providers(put(tmp_path, small()))["tool"]
    assert json.loads(guest_json(found)) == {
        "name": "tool",
        "label": "A tool",
        "older_names": [],
        "note": "",
        "package": None,
        "login": {
            "command": ["tool", "login"],
            "environment": {},
            "requests": [],
            "printed_url_mark": "client_id=",
            "callback_port": None,
            "device_code": None,
            "accepts_code": False,
        },
        "status": None,
        "logout": None,
        "credentials": {
            "file": ".tool/auth.json",
            "requires": ["token"],
            "rotates": False,
            "also": {},
        },
    }


LOGIN = {"command": ["tool"]}
KEPT = {"file": ".tool/auth.json", "requires": ["token"], "rotates": False}


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("label", {"label": ""}),
        ("label", {"label": "two\nlines"}),
        ("note", {"note": "two\nlines"}),
        ("older_names[1]", {"older_names": ["tool_cli", "Tool"]}),
        ("older_names", {"older_names": ["tool"]}),
        ("package", {"package": "../elsewhere"}),
        ("login", {"login": None}),
        ("login.command", {"login": {"command": []}}),
        ("login.command", {"login": {"command": "tool login"}}),
        ("login.command[1]", {"login": {"command": ["tool", "a\0b"]}}),
        ("login.environment.A=B", {"login": {**LOGIN, "environment": {"A=B": "x"}}}),
        ("login.environment.A", {"login": {**LOGIN, "environment": {"A": True}}}),
        ("login.requests[0].method", {"login": {**LOGIN, "requests": [{"params": {}}]}}),
        ("login.printed_url_mark", {"login": {**LOGIN, "printed_url_mark": ""}}),
        ("login.callback_port", {"login": {**LOGIN, "callback_port": 80}}),
        ("login.callback_port", {"login": {**LOGIN, "callback_port": "1455"}}),
        ("login.device_code", {"login": {**LOGIN, "device_code": "code: [A-Z]+"}}),
        ("login.device_code", {"login": {**LOGIN, "device_code": "(code"}}),
        ("login.accepts_code", {"login": {**LOGIN, "accepts_code": "yes"}}),
        ("login.accept_code", {"login": {**LOGIN, "accept_code": True}}),
        ("status.command", {"status": {"command": []}}),
        ("logout", {"logout": []}),
        ("credentials.file", {"credentials": {**KEPT, "file": "/etc/shadow"}}),
        ("credentials.file", {"credentials": {**KEPT, "file": "../other/auth.json"}}),
        ("credentials.file", {"credentials": {**KEPT, "file": ".tool/"}}),
        ("credentials.requires", {"credentials": {**KEPT, "requires": []}}),
        ("credentials.requires[0]", {"credentials": {**KEPT, "requires": ["a..b"]}}),
        ("credentials.rotates", {"credentials": {"file": "a", "requires": ["token"]}}),
        ("credentials.also.../x", {"credentials": {**KEPT, "also": {"../x": {}}}}),
        ("credentials.also.x", {"credentials": {**KEPT, "also": {"x": []}}}),
        (
            "credentials.also.x.a.float",
            {"credentials": {**KEPT, "also": {"x": {"a": float("nan")}}}},
        ),
        ("credentials", {"credentials": {**KEPT, "also": {".tool/auth.json": {}}}}),
        ("credentials", {"credentials": {**KEPT, "also": {".tool": {}}}}),
        ("credentials", {"credentials": {**KEPT, "also": {"a": {}, "a/b": {}}}}),
        ("credentials.file", {"credentials": {**KEPT, "file": "~/auth.json"}}),
        ("label", {"label": " "}),
        ("older_names[0]", {"older_names": ["log"]}),
        ("login.printed_url_mark", {"login": {**LOGIN, "printed_url_mark": " "}}),
        ("login.device_code", {"login": {**LOGIN, "device_code": "([A-Z]*)"}}),
    ],
)
def test_each_error_names_file_and_key_path(tmp_path: Path, key: str, changes: Changes) -> None:
    folder = put(tmp_path, small(**changes))
    assert refusal(folder).startswith(f"{folder / 'tool.yaml'}: {key}: ")


def test_names_match_their_file_and_are_unique(tmp_path: Path) -> None:
    folder = put(tmp_path / "renamed", small())
    (folder / "tool.yaml").rename(folder / "other.yaml")
    assert "other.yaml: name: must be other" in refusal(folder)
    twice = put(tmp_path / "twice", small("alpha", older_names=["old"]))
    put(twice, small("beta", older_names=["old"]))
    assert "beta.yaml: older_names: two providers have the name old" in refusal(twice)


def recipe_with(folder: Path, *layers: dict[str, Any]) -> Path:
    data = plain()
    data["layers"] += layers
    return write(folder, data)


def test_recipe_adds_provider_files_to_the_guest(tmp_path: Path) -> None:
    put(tmp_path / "tools", small("alpha"), small("beta"))
    recipe = load_recipe(recipe_with(tmp_path, {"name": "more", "providers": "tools"}))
    files = {file.path: file for file in guest_files(recipe.layers[-1], {})}
    assert set(files) == {f"{GUEST_FOLDER}/{name}.json" for name in ("alpha", "beta")}
    alpha = load_providers(tmp_path / "tools")["alpha"]
    assert files[f"{GUEST_FOLDER}/alpha.json"].content == guest_json(alpha)


def test_providers_in_plans_match_the_loaded_ones(tmp_path: Path) -> None:
    put(tmp_path / "tools", small("alpha"), small("beta"))
    recipe = load_recipe(recipe_with(tmp_path, {"name": "more", "providers": "tools"}))
    plans = [
        LayerPlan(each.name, "", each, (), (), tuple(guest_files(each, {})), ())
        for each in recipe.layers
    ]
    assert providers_in(plans) == load_providers(tmp_path / "tools")


def test_recipe_with_invalid_providers_is_refused(tmp_path: Path) -> None:
    layer = {"name": "more", "providers": "tools"}
    with pytest.raises(ConfigError, match=r"more\)\.providers: no such file or folder"):
        load_recipe(recipe_with(tmp_path, layer))
    put(tmp_path / "tools", small(package="@tools/tool"))
    load_recipe(recipe_with(tmp_path, layer))  # without npm the tool comes in another way
    npm = {"name": "npm", "npm": {"folder": "npm", "to": "/opt/npm"}}
    (tmp_path / "npm").mkdir()
    for name in ("package.json", "package-lock.json"):
        (tmp_path / "npm" / name).write_text("{}")
    with pytest.raises(ConfigError, match=r"tool\.yaml: package: @tools/tool is in no package"):
        load_recipe(recipe_with(tmp_path, npm, layer))
    put(tmp_path / "tools", small())
    with pytest.raises(ConfigError, match=r"tool\.yaml: name: another layer has"):
        load_recipe(recipe_with(tmp_path, layer, {**layer, "name": "again"}))


def test_check_reports_outdated_tools(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = {each.provider.package: each.version for each in tools_of(load_recipe(RECIPE))}
    monkeypatch.setattr(provider_tools, "newest_version", newest.get)
    assert ended(providers.check) == 0
    newest["@openai/codex"] = "999.0.0"
    capsys.readouterr()
    assert ended(providers.check) == 2
    told = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert [name for name, each in told.items() if each["behind"]] == ["codex"]
    assert told["codex"]["newest"] == "999.0.0"


def ended(verb: Any) -> Any:
    with pytest.raises(SystemExit) as caught:
        verb(Context(), json=True)
    return caught.value.code


def test_oidc_test_recipe_has_only_its_test_provider() -> None:
    recipe = load_recipe(GOLDEN.parent / "tests/oidc/recipe.yaml")
    (providers,) = [found for layer in recipe.layers if (found := layer.load_providers())]
    assert list(providers) == ["testtool"]
