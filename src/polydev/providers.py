"""Providers: the companies whose tools users log in to, each a YAML file beside the recipe.

`load_providers` reads a folder of such files into checked values. The image's build writes each
provider as JSON into the guest (`guest_json`) for the agent, and into the image's record for the
controller. docs/providers.md describes the keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)
from typing_extensions import Self

from polydev.errors import ConfigError
from polydev.validation import key_path, problems_of
from polydev.yaml_files import load_yaml

GUEST_FOLDER = "usr/share/polydev/providers"
"""The folder of providers in the guest, relative to its root."""
KEYS_HINT = "the keys of a provider are described in docs/providers.md"


# Parts of the API's paths that stand where a provider's name may stand.
RESERVED_NAMES = ("log", "store")


def _not_reserved(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"must not be {name}, which is a path of the API")
    return name


def _is_visible(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not have control characters, such as a newline or NUL")
    return text


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not have the character NUL")
    return text


def _below_home(path: str) -> str:
    if not path.isprintable() or {"", ".", ".."} & set(path.split("/")) or path[0] == "~":
        raise ValueError("must be a path below the user's home, as in .tool/credentials.json")
    return path


def _finds_a_code(pattern: str) -> str:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    if compiled.groups != 1:
        raise ValueError(f"must have one group, which matches the code, but has {compiled.groups}")
    if compiled.search(""):
        raise ValueError("must not match an empty text")
    return pattern


Name = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$"), AfterValidator(_not_reserved)
]
OlderName = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$"), AfterValidator(_not_reserved)
]
Line = Annotated[str, AfterValidator(_one_line), AfterValidator(_is_visible)]
Word = Annotated[str, StringConstraints(min_length=1), AfterValidator(_no_nul)]
Argv = Annotated[list[Word], Field(min_length=1)]
NpmName = Annotated[str, StringConstraints(pattern=r"^(@[a-z0-9._~-]+/)?[a-z0-9._~-]+$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Environment = dict[Variable, Annotated[str, AfterValidator(_no_nul)]]
HomePath = Annotated[str, AfterValidator(_below_home)]
DottedKey = Annotated[str, StringConstraints(pattern=r"^[^.\s]+(\.[^.\s]+)*$")]
CodePattern = Annotated[str, AfterValidator(_finds_a_code)]


class ProviderModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Request(ProviderModel):
    """A JSON-RPC request that is sent to the tool on its standard input."""

    method: Word
    params: dict[str, JsonValue] = {}


class Login(ProviderModel):
    """How the tool logs in, and how to read its output.

    requests           sent to a tool that speaks JSON-RPC; the answer to the last request says how
                       the login ended
    printed_url_mark   a printed URL that contains this is the URL of the login
    callback_port      loopback port for the browser's return; for people, no program reads it; None
                       if the tool takes a free one or needs none
    device_code        regular expression whose one group matches the device code in the output
    accepts_code       whether the user may paste a code into the tool's terminal
    """

    command: Argv
    environment: Environment = {}
    requests: list[Request] = []
    printed_url_mark: Line = "client_id="
    callback_port: Annotated[int, Field(ge=1024, le=65535)] | None = None
    device_code: CodePattern | None = None
    accepts_code: bool = False


class Status(ProviderModel):
    """The command that exits with status 0 if the tool is logged in."""

    command: Argv
    environment: Environment = {}


class Credentials(ProviderModel):
    """The file below the user's home in which the tool keeps its credentials, a JSON object.

    requires   dotted keys that valid credentials have, with values that are not empty
    rotates    whether a refresh token works only once, so that one machine at a time may use it
    also       other JSON files that the tool needs, by their paths below the home
    """

    file: HomePath
    requires: Annotated[list[DottedKey], Field(min_length=1)]
    rotates: bool
    also: dict[HomePath, dict[str, JsonValue]] = {}

    @model_validator(mode="after")
    def _files_fit(self) -> Self:
        paths = [PurePosixPath(each) for each in (self.file, *self.also)]
        for index, path in enumerate(paths):
            others = paths[:index] + paths[index + 1 :]
            if any(each == path or each in path.parents for each in others):
                raise ValueError(f"{path} is another of these files, or below one")
        return self


class Provider(ProviderModel):
    """One provider. `credentials` is None if its credentials are not handed over.

    older_names   names that older clients use
    note          text for users on the start page
    package       the npm package of the tool; None if the tool is installed in another way
    status        None if the tool has no such command
    logout        for people: no program runs it, since it would revoke the credentials
    """

    name: Name
    label: Line
    older_names: list[OlderName] = []
    note: Annotated[str, AfterValidator(_one_line)] = ""
    package: NpmName | None = None
    login: Login
    status: Status | None = None
    logout: Argv | None = None
    credentials: Credentials | None

    @property
    def rotates(self) -> bool:
        """Whether its credentials are handed over, and only one machine at a time may use them."""
        return self.credentials is not None and self.credentials.rotates

    @property
    def names(self) -> tuple[str, ...]:
        """All names that callers may use."""
        return self.name, *self.older_names


def load_providers(folder: Path) -> dict[str, Provider]:
    """Read the providers of a folder's `*.yaml` files, by name.

    Raises ConfigError with the file and the key path of each error.
    """
    found: dict[str, Provider] = {}
    for file in sorted(folder.glob("*.yaml")):
        provider = _load(file)
        if provider.name != file.stem:
            message = f"must be {file.stem}, like the name of the file"
            raise ConfigError(message, KEYS_HINT, file=file, key="name")
        taken = set(provider.names) & set(by_any_name(found))
        if taken or len(set(provider.names)) < len(provider.names):
            message = f"two providers have the name {min(taken)}" if taken else "has a name twice"
            raise ConfigError(message, KEYS_HINT, file=file, key="older_names")
        found[provider.name] = provider
    return found


def by_any_name(providers: Mapping[str, Provider]) -> dict[str, Provider]:
    """Return the providers by their current and older names."""
    return {name: each for each in providers.values() for name in each.names}


def guest_json(provider: Provider) -> bytes:
    """Return a provider as JSON for the guest, with all keys, also those its file omits."""
    return json.dumps(provider.model_dump(mode="json"), indent=1).encode() + b"\n"


def _load(file: Path) -> Provider:
    data: Any = load_yaml(file)
    try:
        return Provider.model_validate(data)
    except ValidationError as error:
        faults = [
            f"{file}: {key_path(place)}: {words}" if place else f"{file}: {words}"
            for place, words in problems_of(error, Provider)
        ]
        raise ConfigError("\n".join(faults), KEYS_HINT) from error
