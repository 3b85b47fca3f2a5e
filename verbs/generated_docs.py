"""Generate docs/verbs.md and docs/api.md from the code, for `./inv docs`.

This is a program of its own, since Invoke returns the help of options only once in a process.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from invoke.collection import Collection
from invoke.parser.argument import Argument
from invoke.parser.context import ParserContext
from pydantic import TypeAdapter
from pydantic.alias_generators import to_camel

import polydev.errors
from polydev.invoke_program import WORD_OF
from verbs.json_answers import ANSWERS, ApiAnswer
from verbs.paths_and_help import ROOT

VERBS_FILE = ROOT / "docs" / "verbs.md"
API_FILE = ROOT / "docs" / "api.md"
WRITTEN_BY = "<!-- Written by ./inv docs from {source}. Change that, not this file. -->\n"
# Options that the introduction explains.
SHARED = ("inventory", "host", "url", "token", "json", "wait")
METHODS = ("get", "post", "put", "patch", "delete")
FIELD_LINE = re.compile(r"(\w+(?:, \w+)*)(?:  +(\S.*)|)$")
TREE_LINE = re.compile(r"[\s│├└─]*[├└]── (\w+)\s+(\S.*)")

# The sections of docs/verbs.md: verbs by name or by the part of it before the dot.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "This machine": ("up", "down", "where", "doctor"),
    "Images": ("golden", "providers"),
    "Hosts": ("deploy", "drift", "rollback", "backup", "deployments", "unlock", "host", "lab"),
    "Database": ("database",),
    "Sessions": ("sessions", "session", "vms", "console", "screenshot", "viewer", "usage"),
    "Templates and the pool": ("templates", "template", "pool", "bench"),
    "Health, alerts and webhooks": ("health", "open", "alerts", "alert", "webhooks", "webhook"),
    "Users and credentials": ("user", "token", "credentials"),
    "Development": ("check", "test", "docs"),
}

VERBS_INTRO = """\
# Verbs

For operators: what `./inv` can do, its options, and its answers for programs. `./inv` lists the
verbs, `./inv VERB --help` shows one.

## What all verbs share

**Which host.** Verbs about hosts take `--inventory FILE`, and `--host NAME` if the file has
several; commands in messages repeat both. Without them they mean the lab `dev`, or the one that
`POLYDEV_LAB` names. Verbs that ask a controller's API (those with `--url` and `--token`) ask the
lab's controller with the token that `up` stored for an admin (`access.json` in the lab's folder,
readable by its owner only), or the one that `--url` and `--token` or `POLYDEV_URL` and
`POLYDEV_TOKEN` name. With `--inventory` or `--host` they ask that host's controller through SSH.

**Names.** A VM, session, template or deployment is named by its id or the first characters of it
(4 or more for VMs and sessions), a user also by name, an image by its digest, the first 6 or more
digits of it, or `golden`, `previous`, `latest`.

**Waiting.** `deploy`, `rollback`, `backup` and `database.move` take `--wait SECONDS`: how long to
wait while somebody else works on the host. Outside of a git checkout they are refused.

**JSON.** With `--json` a verb prints one JSON document on stdout; progress stays on stderr. Digests
are 64 hexadecimal digits, times ISO 8601 in UTC.

**Exit status.**

| status | meaning |
|---|---|
| 0 | the verb did what was asked |
| 1 | an error; `doctor` found a problem; a receiver did not accept a test of `webhook.try` or \
`alert.test` |
| 2 | the verb worked, and there is something to do: `drift` found a difference, \
`deploy --plan --detailed-exitcode` found a change, `health` found the host not healthy, \
`providers.check` found an old tool |
| 130 | interrupted by Ctrl-C or SIGTERM |

`host.shell` and `host.logs --follow` end with the status of ssh, `test` with that of pytest.

**Errors.** Exit status 1; with `--json` the document is (not if the verb or option does not exist)

| field | type | meaning |
|---|---|---|
| `error` | text | its kind, such as `config`, `image`, `boot`, `lock-held`, `health-gate` |
| `message` | text | what failed, and on what |
| `hint` | text or null | what to do next |
"""

API_INTRO = """\
# API

For programmers: each call of a controller, its parameters and its answer. A running controller
serves the same as `/openapi.json`. [controller.md](controller.md) explains sessions, logins, roles
and limits; [README.md](../README.md) has a session by curl.

Each call except `GET /api/auth/health` needs `Authorization: Bearer TOKEN`; event streams also take
`?access_token=TOKEN`. The viewer, `/api/auth/session/ID/novnc/websock`, is a WebSocket:
[controller.md](controller.md#the-viewer) has it. Sizes are bytes, times ISO 8601 in UTC, unless a
name or text says otherwise.
"""


def verbs_page(contexts: Iterable[ParserContext], collection: Collection) -> str:
    """Return docs/verbs.md."""
    by_name = {str(each.name): each for each in contexts}
    parts = [WRITTEN_BY.format(source="the verbs and verbs/json_answers.py"), VERBS_INTRO]
    shown: dict[str, str] = {}
    for title, names in SECTIONS.items():
        found = [name for name in by_name if name in names or name.split(".")[0] in names]
        found.sort(key=lambda name: (names.index(name.split(".")[0]), name.split(".")[1:]))
        parts.append(f"## {title}\n")
        parts.append(_verb_table(found, collection))
        parts += [_verb(by_name[name], collection, shown) for name in found]
    return "\n".join(parts)


def _verb_table(names: Iterable[str], collection: Collection) -> str:
    rows = [
        (f"`{name}`", _first_paragraph(inspect.getdoc(collection[name]) or "")) for name in names
    ]
    return _table(("verb", "does"), rows)


def _verb(verb: ParserContext, collection: Collection, shown: dict[str, str]) -> str:
    """Return the section of one verb: what it does, its options, its answer."""
    words = [str(each.name).upper() for each in verb.positional_args]
    if option := WORD_OF.get(str(verb.name)):
        words.append(f"[{option[2:].upper()}]")
    aliases = "".join(f" (or `{name}`)" for name in verb.aliases)
    parts = [f"### {verb.name}\n", f"`{' '.join(['./inv', str(verb.name), *words])}`{aliases}\n"]
    parts.append(_flowed(inspect.getdoc(collection[str(verb.name)]) or ""))
    options = [each for each in _options(verb) if each.name not in SHARED]
    if options:
        rows = [(_option(each), each.help or "") for each in options]
        parts.append(_table(("option", "meaning"), rows))
    if shared := [_option(each) for each in _options(verb) if each.name in SHARED]:
        parts.append(_flowed(f"Also {' · '.join(shared)}"))
    if str(verb.name) in ANSWERS:
        parts.append(_declared(str(verb.name), shown))
    return "\n".join(parts)


def _options(verb: ParserContext) -> list[Argument]:
    """Return the arguments of a verb, each once; Invoke has one entry for each of their names."""
    return list({argument.name: argument for argument in verb.args.values()}.values())


def _option(argument: Argument) -> str:
    flag = str(argument.name).replace("_", "-")
    if argument.positional:
        return f"`{flag.upper()}`"
    shorts = [f"`-{name}`" for name in argument.names if len(name) == 1]
    if argument.kind is bool:
        long = f"`--no-{flag}`" if argument.default is True else f"`--{flag}`"
    else:
        kinds = {int: "NUMBER", float: "NUMBER"}
        long = f"`--{flag} {kinds.get(argument.kind, 'TEXT')}`"
    return ", ".join([long, *shorts])


def _declared(verb: str, shown: dict[str, str]) -> str:
    """Return the answer of a verb; `shown` has the shapes above, with the verb of each."""
    declared = ANSWERS[verb]
    if isinstance(declared, ApiAnswer):
        what = "a list of " if declared.is_list else ""
        link = f"[{declared.schema}](api.md#{declared.schema.lower()})"
        return f"**Answer**: {what}{link} of the API.\n"
    schema = TypeAdapter(declared).json_schema()
    defs = schema.pop("$defs", {})
    parts = []
    for choice in schema.get("anyOf", [schema]):
        is_list = choice.get("type") == "array"
        shape = _resolved(choice.get("items", choice), defs)
        lead = "**Answer**, a list: " if is_list else "**Answer**: "
        first = shown.setdefault(str(shape["title"]), verb)
        if first == verb:
            parts.append(_shape(shape, defs, lead=lead))
        else:
            parts.append(f"{lead}as of [`{first}`](#{_anchor(first)}).\n")
    return "\n".join(dict.fromkeys(parts))


def _resolved(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    return defs[name] if name else schema


def _shape(schema: Mapping[str, Any], defs: Mapping[str, Any], lead: str = "") -> str:
    """Return a table of an object's fields, and below it those of the objects in it."""
    prose, _ = _described(schema.get("description", ""))
    parts = [_flowed(lead + prose)] if lead + prose else []
    parts.append(_fields(schema, {}))
    for name in _named_in(schema):
        if name in defs:
            inner, _ = _described(defs[name].get("description", ""))
            parts.append(_flowed(f"`{name}`: {inner}"))
            parts.append(_fields(defs[name], {}))
            parts += [
                _flowed(f"`{deeper}`: {_described(defs[deeper].get('description', ''))[0]}")
                + "\n"
                + _fields(defs[deeper], {})
                for deeper in _named_in(defs[name])
                if deeper in defs and deeper not in _named_in(schema)
            ]
    return "\n".join(parts)


def _named_in(schema: Mapping[str, Any]) -> list[str]:
    """Return the names of the schemas that a schema's fields refer to, each once."""
    found = re.findall(r"'\$ref': '[^']*/(\w+)'", repr(schema.get("properties", {})))
    return list(dict.fromkeys(found))


def _fields(schema: Mapping[str, Any], links: Mapping[str, str]) -> str:
    _, meanings = _described(schema.get("description", ""))
    rows = []
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        meaning = field.get("description") or meanings.get(name) or ""
        type_text = type_name(field, links)
        default = field.get("default")
        if name not in required and default in (None, "", []):
            type_text = f"{type_text.removesuffix(' or null')}, optional"
        elif name not in required:
            meaning = f"{meaning} (default: {_json(default)})".strip()
        rows.append((f"`{name}`", type_text, " ".join(meaning.split())))
    return _table(("field", "type", "meaning"), rows) if rows else ""


def type_name(field: Mapping[str, Any], links: Mapping[str, str]) -> str:
    """Return the type of a JSON value in words; `links` has the address of each schema."""
    if "$ref" in field:
        name = str(field["$ref"]).rpartition("/")[2]
        return f"[{name}]({links[name]})" if name in links else f"`{name}`"
    if "anyOf" in field or "oneOf" in field:
        kinds = [type_name(each, links) for each in field.get("anyOf", field.get("oneOf", ()))]
        kinds.sort(key=lambda kind: kind == "null")
        return " or ".join(dict.fromkeys(kinds))
    if "allOf" in field:
        return " and ".join(type_name(each, links) for each in field["allOf"])
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type")
    if kind == "array":
        return f"list of {type_name(field.get('items', {}), links)}"
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        inner = type_name(field["additionalProperties"], links)
        return "map" if inner == "any" else f"map to {inner}"
    if kind == "string":
        named = {"date-time": "time", "date": "date", "uuid": "UUID", "uri": "URL"}
        return named.get(str(field.get("format")), "text")
    return {"object": "map", None: "any"}.get(kind, str(kind))


def api_page(openapi: Mapping[str, Any], statuses: Mapping[str, int]) -> str:
    """Return docs/api.md; `statuses` has the HTTP status of each error of polydev.errors."""
    schemas = openapi["components"]["schemas"]
    links = {name: f"#{name.lower()}" for name in schemas}
    parts = [WRITTEN_BY.format(source="the controller's OpenAPI"), API_INTRO]
    by_tag: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for path, operations in openapi["paths"].items():
        for method in METHODS:
            if method in operations:
                operation = operations[method]
                tag = operation.get("tags", ["other"])[0]
                by_tag.setdefault(tag, []).append((f"{method.upper()} {path}", operation))
    for tag, found in by_tag.items():
        parts.append(f"## Calls about {tag}\n")
        rows = [(f"[`{name}`](#{_anchor(name)})", each.get("summary", "")) for name, each in found]
        parts.append(_table(("call", ""), rows))
        parts += [_call(name, each, links) for name, each in found]
    parts.append(_errors(statuses))
    parts.append("## Schemas\n")
    for name, schema in sorted(schemas.items()):
        prose, _ = _described(schema.get("description", ""))
        parts.append(f"### {name}\n")
        if prose:
            parts.append(_flowed(prose))
        if "properties" in schema:
            parts.append(_fields(schema, links))
        elif "enum" in schema or "type" in schema:
            parts.append(f"{type_name(schema, links)}\n")
    return "\n".join(parts)


def _anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _call(name: str, operation: Mapping[str, Any], links: Mapping[str, str]) -> str:
    parts = [f"### {name}\n", _flowed(f"{operation.get('summary', '')}.")]
    if operation.get("description"):
        parts.append(_flowed(operation["description"]))
    rows = []
    for each in operation.get("parameters", ()):
        schema = each.get("schema", {})
        meaning = each.get("description") or schema.get("description") or ""
        if schema.get("default") not in (None, ""):
            meaning = f"{meaning} (default: {_json(schema['default'])})".strip()
        rows.append((f"`{each['name']}`", each["in"], type_name(schema, links), meaning))
    if rows:
        parts.append(_table(("parameter", "in", "type", "meaning"), rows))
    if body := operation.get("requestBody"):
        (content,) = body["content"].values()
        parts.append(f"Body: {type_name(content['schema'], links)}\n")
    refused = []
    for status, answer in sorted(operation["responses"].items()):
        if int(status) >= 400:
            refused.append(status)
            continue
        kinds = [
            f"`{media}`"
            if "schema" not in content or not content["schema"]
            else type_name(content["schema"], links)
            for media, content in answer.get("content", {}).items()
        ]
        said = answer.get("description", "").replace("Successful Response", "")
        text = ": ".join(part for part in (said, " or ".join(kinds)) if part)
        parts.append(_flowed(f"- **{status}** {text}").rstrip())
    if refused:
        parts.append(f"- errors: {', '.join(refused)}\n")
    return "\n".join(parts)


def _errors(statuses: Mapping[str, int]) -> str:
    """Return the table of error codes."""
    lines = (polydev.errors.__doc__ or "").splitlines()
    found = [match for line in lines if (match := TREE_LINE.match(line))]
    meanings = {match[1]: match[2] for match in found}
    rows = []
    for code, status in statuses.items():
        kind, _, name = code.partition(" ")
        rows.append((f"`{kind}`", str(status), meanings.get(name, "")))
    lead = (
        "A refused call answers [Problem](#problem) as `application/problem+json`. Its `type` is "
        "`urn:polydev:error:` and one of these codes, or `about:blank`."
    )
    return "\n".join(["## Errors\n", _flowed(lead), _table(("code", "status", "meaning"), rows)])


def _described(description: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its prose and the meanings of the fields that it lists."""
    prose: list[str] = []
    meanings: dict[str, str] = {}
    current: list[str] = []
    for line in inspect.cleandoc(description).splitlines():
        found = FIELD_LINE.match(line)
        if found and found[2]:
            current = found[1].split(", ")
            meanings.update(dict.fromkeys([*current, *map(to_camel, current)], found[2]))
        elif current and line.startswith("  "):
            for name in {*current, *map(to_camel, current)}:
                meanings[name] = f"{meanings[name]} {line.strip()}"
        else:
            current = []
            prose.append(line)
    return "\n".join(prose).strip(), meanings


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _json(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def _flowed(text: str) -> str:
    """Return paragraphs of prose in lines of at most 100 characters."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        words = " ".join(paragraph.split())
        indent = "  " if words.startswith("- ") else ""
        lines = textwrap.wrap(
            words,
            100,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs) + "\n"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def documents(contexts: Iterable[ParserContext], collection: Collection) -> dict[Path, str]:
    """Return the text of each document that is made of code."""
    from polydev.controller.app import create_app
    from polydev.controller.problem_details import STATUSES
    from polydev.controller.settings import ControllerSettings

    app = create_app(ControllerSettings(release_file=ROOT / "no release"))
    codes = {f"{kind.code} {kind.__name__}": int(status) for kind, status in STATUSES.items()}
    return {
        VERBS_FILE: verbs_page(contexts, collection),
        API_FILE: api_page(app.openapi(), codes),
    }


def main() -> None:
    from tasks import namespace

    for file, text in documents(namespace.to_contexts(), namespace).items():
        is_new = not file.exists() or file.read_text() != text
        file.write_text(text)
        print(f"{file.relative_to(ROOT)}: {'written' if is_new else 'unchanged'}")


if __name__ == "__main__":
    main()
