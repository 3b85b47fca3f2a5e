"""Recipes: YAML files that say which layers an image is made of, read into checked values.

A recipe may extend another one: it leaves out layers of it (`without`), adds layers above them and
replaces single values. Paths in a recipe are relative to its folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from polydev.errors import ConfigError
from polydev.image.guest_paths import is_mounted
from polydev.providers import Provider, by_any_name, load_providers
from polydev.validation import Ipv4Address, Ipv4Interface, NamedPath, key_path, no_flag, problems_of
from polydev.yaml_files import load_yaml

# npm records the place of each package here.
LOCK = "package-lock.json"
KEYS_HINT = "the keys of a recipe are described in golden/README.md"


def _no_control_characters(text: Any) -> Any:
    """Refuse characters that would end a word or line within a path, an option or a command."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in str(text)):
        raise ValueError("must not have control characters, such as a newline or NUL")
    return text


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not have the character NUL")
    return text


def _stays_inside(path: str) -> str:
    if ".." in path.split("/"):
        raise ValueError("must not contain ..")
    return path


def _is_absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("must be an absolute path in the guest, which begins with /")
    return path


def _can_be_seen(path: str) -> str:
    if is_mounted(path):
        raise ValueError("must not be below /dev, /proc or /sys, which the guest mounts over")
    return path


def _is_below_the_root(path: str) -> str:
    if not path.strip("/."):
        raise ValueError("must not be the root itself")
    return path


def _is_relative(glob: str) -> str:
    parts = glob.split("/")
    if not glob or glob.startswith("/"):
        raise ValueError("must be a relative glob, which does not begin with /")
    if any("**" in part and part != "**" for part in parts):
        raise ValueError("must have ** only as a whole part of the path, as in **/*.py")
    return glob


# apt would remove a package whose name ends in a hyphen.
PackageName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]*[a-z0-9+.]$")]
LayerName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
# Not an option: those of systemctl begin with a hyphen.
UnitName = Annotated[str, StringConstraints(pattern=r"^[\w@.\\][\w@.\\-]*\.[a-z]+$")]
# Both become parts of file names and of options.
SuiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[\w-]+$")]
Word = Annotated[str, AfterValidator(_no_control_characters)]
Command = Annotated[str, AfterValidator(_no_nul)]
# Relative to the recipe, on this machine.
LocalPath = Annotated[NamedPath, AfterValidator(_no_control_characters)]
GuestGlob = Annotated[Word, AfterValidator(_is_absolute), AfterValidator(_stays_inside)]
GuestFolder = Annotated[GuestGlob, AfterValidator(_can_be_seen)]
GuestPath = Annotated[GuestFolder, AfterValidator(_is_below_the_root)]
Glob = Annotated[Word, AfterValidator(_is_relative), AfterValidator(_stays_inside)]


class RecipeModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    _check_flags = field_validator("*", mode="before")(no_flag)  # no key is one


class Network(RecipeModel):
    """The guest's static network, which is the same in every VM."""

    address: Ipv4Interface
    gateway: Ipv4Address
    dns: list[Ipv4Address] = Field(min_length=1, max_length=3)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        own, network = self.address.ip, self.address.network
        edges = (network.network_address, network.broadcast_address)
        if network.num_addresses == 1:
            raise ValueError(f"address {own} names no network: write it as in {own}/30")
        if own in edges:
            raise ValueError(f"address {own} is not one of a host in {network}")
        if self.gateway == own or self.gateway in edges or self.gateway not in network:
            raise ValueError(f"gateway {self.gateway} must be another host in {network}")
        for server in self.dns:
            if server == own or server.is_unspecified or server.is_multicast:
                raise ValueError(f"dns {server} is not a server that the guest reaches")
        return self


class Kernel(RecipeModel):
    """A Debian kernel. `modules` stay in the image, `initrd_modules` find the root filesystem.

    Both lists need not name dependencies. `cmdline` is the command line of every boot.
    """

    package: PackageName
    modules: list[ModuleName]
    initrd_modules: list[ModuleName]
    cmdline: list[Word]


class Copy(RecipeModel):
    """Files of this machine, by glob, that are copied into a folder of the guest."""

    source: LocalPath
    glob: Glob = "**/*"
    to: GuestFolder


class Npm(RecipeModel):
    """npm packages of a lock file, installed into a folder of the guest.

    `omit` are globs below that folder, for files of the packages that no VM needs.
    """

    folder: LocalPath
    to: GuestFolder
    omit: list[Glob] = []


class Layer(RecipeModel):
    """One layer; golden/README.md describes each key."""

    name: LayerName
    folder: Path = Path()
    packages: list[PackageName] = []
    unpack: list[PackageName] = []
    npm: Npm | None = None
    providers: LocalPath | None = None
    files: LocalPath | None = None
    copies: list[Copy] = Field(default=[], alias="copy")
    run: list[Command] = []
    enable: list[UnitName] = []
    disable: list[UnitName] = []
    mask: list[UnitName] = []
    remove: list[GuestPath] = []

    def load_providers(self) -> dict[str, Provider]:
        """Read the layer's providers, by name. Raises ConfigError."""
        return load_providers(self.folder / self.providers) if self.providers else {}

    @property
    def needs_chroot(self) -> bool:
        """Whether it is made inside the layers below it, and thus depends on them."""
        return bool(self.packages or self.run or self.enable or self.disable or self.remove)


class Recipe(RecipeModel):
    name: LayerName
    suite: SuiteName
    architecture: SuiteName = "amd64"
    source_date_epoch: int = Field(gt=0, lt=2**32)  # ext4 has no later times
    free_space_mib: int = Field(ge=0)
    network: Network
    kernel: Kernel
    exclude: list[GuestGlob] = []
    include: list[GuestGlob] = []
    layers: list[Layer] = Field(min_length=1)

    def places_of(self, package: str) -> list[str]:
        """Return the places where the recipe names a Debian package."""
        places = ["kernel.package"] if package == self.kernel.package else []
        named = [layer for layer in self.layers if package in (*layer.packages, *layer.unpack)]
        return places + [f"layer {layer.name}" for layer in named]

    def variables(self) -> dict[str, Any]:
        """Return the variables of the guest's `*.j2` files."""
        return {"name": self.name, "network": self.network.model_dump(mode="json")}


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises ConfigError with the file and the key path of each error.
    """
    data = _merged(path, seen=())
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        faults = [
            f"{path}: {key_path(place)}: {words}" for place, words in problems_of(error, Recipe)
        ]
        raise ConfigError("\n".join(faults), KEYS_HINT) from error
    _check_layers(path, recipe)
    return recipe


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError("extends itself", file=path, key="extends")
    data = _read_yaml(path)
    for index, layer in enumerate(_list_of(dict, data, "layers", path)):
        if "folder" in layer:
            key = f"layers[{index}].folder"
            raise ConfigError("there is no such key", KEYS_HINT, file=path, key=key)
        layer["folder"] = path.parent.resolve()
    base_name = data.pop("extends", None)
    without = _list_of(str, data, "without", path)
    data.pop("without", None)
    if base_name is None:
        if without:
            raise ConfigError("needs `extends`", file=path, key="without")
        return data
    base = _merged(path.parent / str(base_name), (*seen, path.resolve()))
    known = [layer.get("name") for layer in base.get("layers", [])]
    for name in without:
        if name not in known:
            raise ConfigError(
                f"no layer named {name} in {base_name}",
                f"its layers: {', '.join(map(str, known))}",
                file=path,
                key="without",
            )
    kept = [layer for layer in base.get("layers", []) if layer.get("name") not in without]
    own = data.pop("layers", [])
    return {**_deep_merge(base, data), "layers": [*kept, *own]}


def _list_of(kind: type, data: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
        what = "names" if kind is str else "mappings"
        raise ConfigError(f"must be a list of {what}", file=path, key=key)
    return value


def _deep_merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_maps = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _deep_merge(merged[key], value) if both_maps else value
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    data = load_yaml(path, "name a recipe with --recipe")
    if not isinstance(data, dict):
        raise ConfigError("must be a mapping of keys", file=path)
    return data


def _check_layers(path: Path, recipe: Recipe) -> None:
    names = [layer.name for layer in recipe.layers]
    for index, layer in enumerate(recipe.layers):
        key = f"layers[{index}] ({layer.name})"
        if layer.name in names[:index] or layer.name == "kernel":
            raise ConfigError("another layer has this name", file=path, key=f"{key}.name")
        for place, missing in _missing_files(layer):
            raise ConfigError(f"no such file or folder: {missing}", file=path, key=f"{key}.{place}")
        if layer.npm:
            _check_lock(layer.folder / layer.npm.folder / LOCK, path, f"{key}.npm.folder")
    if not recipe.layers[0].packages:
        raise ConfigError("the first layer must have packages", file=path, key="layers[0].packages")
    _check_providers(recipe)


def _check_lock(lock: Path, path: Path, key: str) -> None:
    """Refuse a lock with which npm would write outside its folder. Raises ConfigError."""
    try:
        places = json.loads(lock.read_text(encoding="utf-8")).get("packages", {})
        outside = [place for place in places if place and not _is_npm_place(place)]
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{lock} is not a lock file of npm: {error}", file=path, key=key
        ) from error
    if outside:
        raise ConfigError(
            f"{lock} puts a package into {outside[0]}, which is not below node_modules",
            "an image's packages must come from a registry, not from a local folder",
            file=path,
            key=key,
        )


def _check_providers(recipe: Recipe) -> None:
    """Refuse two providers with one name, and providers whose tool no npm layer installs.

    A recipe without npm layers installs its tools in another way.
    """
    with_npm = [layer for layer in recipe.layers if layer.npm]
    packages = {name for layer in with_npm for name in _npm_packages(layer)}
    known: dict[str, Provider] = {}
    for layer in recipe.layers:
        found = layer.load_providers()
        for provider in found.values():
            file = layer.folder / str(layer.providers) / f"{provider.name}.yaml"
            if taken := set(provider.names) & set(by_any_name(known)):
                message = f"another layer has a provider named {min(taken)}"
                raise ConfigError(message, file=file, key="name")
            if with_npm and provider.package is not None and provider.package not in packages:
                message = f"{provider.package} is in no package.json of the recipe"
                raise ConfigError(message, "add it with npm install", file=file, key="package")
        known |= found


def _npm_packages(layer: Layer) -> list[str]:
    if not layer.npm:
        return []
    manifest = layer.folder / layer.npm.folder / "package.json"
    try:
        return list(json.loads(manifest.read_text(encoding="utf-8")).get("dependencies", {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"is not a package.json of npm: {error}", file=manifest) from error


def _is_npm_place(place: str) -> bool:
    parts = place.split("/")
    return parts[0] == "node_modules" and not {"", ".", ".."} & set(parts)


def _missing_files(layer: Layer) -> Iterator[tuple[str, Path]]:
    """Yield the local files that a layer names and that do not exist, each with its key."""
    for number, copy in enumerate(layer.copies):
        source = layer.folder / copy.source
        if not source.exists():
            yield f"copy[{number}].source", source
        elif not any(path.is_file() for path in source.glob(copy.glob)):
            yield f"copy[{number}].glob", source / copy.glob
    if layer.files and not (layer.folder / layer.files).is_dir():
        yield "files", layer.folder / layer.files
    if layer.providers and not any((layer.folder / layer.providers).glob("*.yaml")):
        yield "providers", layer.folder / layer.providers / "*.yaml"
    for name in (LOCK, "package.json"):
        if layer.npm and not (layer.folder / layer.npm.folder / name).is_file():
            yield "npm.folder", layer.folder / layer.npm.folder / name
