"""The inventory's values of one host, checked: dict → HostData."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from polydev.errors import ConfigError
from polydev.host_layout import CONTROLLER_PORT, DEPLOYMENT_ID, slot_address
from polydev.host_setup.inventory_network_checks import Problem, contradictions
from polydev.host_setup.listen_address import ListenAddress, parse_listen_address
from polydev.host_setup.secret_files import CERTIFICATE
from polydev.host_setup.ssh_settings import PREFIX, SshSettings
from polydev.settings import Settings
from polydev.validation import (
    Ipv4Address,
    Ipv4Interface,
    Ipv4Network,
    NamedPath,
    dotted,
    near,
    no_flag,
    problems_of,
)

Target = Literal["all", "master-controller", "vm-agent"]
Resolvers = Annotated[tuple[Ipv4Address, ...], Field(min_length=1)]


def _is_secret_name(name: str) -> str:
    if re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name) is None:
        raise ValueError("is not a name of a secret: use lower-case letters, digits and hyphens")
    return name


# The names of files on the host; the controller knows which secrets there are.
SecretName = Annotated[str, AfterValidator(_is_secret_name)]
FIRST_SLOT = 2
MOST_MIB = 1024 * 1024  # a TiB
MOST_DEADMAN_SECONDS = 3600
# The resolvers that the golden image's guest uses by itself.
IMAGE_RESOLVERS = (IPv4Address("8.8.8.8"), IPv4Address("8.8.4.4"))
# Prefixes of keys that pyinfra and its connectors read.
FOREIGN_PREFIXES = (PREFIX, "_", "sudo")


def _listen(text: str) -> str:
    return str(parse_listen_address(text))


class Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    _check_flags = field_validator("*", mode="before")(no_flag)  # no key is one


class Firecracker(Checked):
    """Programs on the operator's machine, sent once their checksums are right."""

    file: NamedPath
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    jailer_file: NamedPath
    jailer_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class HostData(Checked):
    """The declared state of one host.

    slots               number of VMs that can run at the same time
    vm_…                resources of each VM; the cache is for code that TCG translated
    resolvers           resolvers of the VMs; if they differ from those of the image, DNS requests
                        are redirected to the first of them
    upstream_resolvers  resolvers of the host's own DNS cache
    reachable           private networks that VMs may reach nevertheless
    image               digest of the image to run; None for the operator's golden one
    store               image store on the operator's machine
    source              checkout that the controller is built from
    secrets             name → file on the operator's machine
    move_database       set by a verb: copy the rows of SQLite to PostgreSQL; `replace` deletes our
                        rows there first
    """

    target: Target = "all"
    deployment_id: Annotated[str, Field(pattern=rf"^{DEPLOYMENT_ID.pattern}$")] | None = None
    slots: Annotated[int, Field(ge=1, le=250)] = 8
    vm_cpus: Annotated[int, Field(ge=1, le=64)] = 2
    vm_memory_mib: Annotated[int, Field(ge=128, le=MOST_MIB)] = 2048
    vm_translation_cache_mib: Annotated[int, Field(ge=32, le=MOST_MIB)] = 1024
    bridge_address: Ipv4Interface = IPv4Interface("192.168.100.1/24")
    resolvers: Resolvers = IMAGE_RESOLVERS
    upstream_resolvers: Resolvers = IMAGE_RESOLVERS
    reachable: tuple[Ipv4Network, ...] = ()
    controller_listen: Annotated[str, AfterValidator(_listen)] = f"127.0.0.1:{CONTROLLER_PORT}"
    controller: dict[str, Any] = {}
    secrets: dict[SecretName, NamedPath] = {}
    firecracker: Firecracker | None = None
    image: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    store: NamedPath = Field(default_factory=lambda: Settings.from_environment().store)
    cache: NamedPath = Field(default_factory=lambda: Settings.from_environment().cache)
    source: NamedPath = Path()
    move_database: Literal["no", "copy", "replace"] = "no"
    journal_max_mib: Annotated[int, Field(ge=16, le=MOST_MIB)] = 512
    deadman_seconds: Annotated[int, Field(ge=10, le=MOST_DEADMAN_SECONDS)] = 90

    @model_validator(mode="after")
    def _slots_fit(self) -> Self:
        network = self.bridge_address.network
        if network.num_addresses == 1:
            raise ValueError(
                f"bridge_address {self.gateway} names no network: write it as in {self.gateway}/24"
            )
        if self.slots > network.num_addresses - 3:
            raise ValueError(f"{self.slots} slots do not fit in {network}")
        taken = [network.network_address, network.broadcast_address]
        if self.gateway in [*taken, *map(self.slot_address, self.slot_numbers)]:
            raise ValueError(f"bridge_address {self.gateway} is not free for the host")
        return self

    @property
    def translates_names(self) -> bool:
        """Whether guests' DNS requests are redirected to another resolver."""
        return self.resolvers != IMAGE_RESOLVERS

    @property
    def slot_numbers(self) -> range:
        return range(FIRST_SLOT, FIRST_SLOT + self.slots)

    @property
    def gateway(self) -> IPv4Address:
        return self.bridge_address.ip

    def slot_address(self, number: int) -> IPv4Address:
        return slot_address(self.bridge_address.network, number)

    @property
    def listen(self) -> ListenAddress:
        return parse_listen_address(self.controller_listen)

    @property
    def controller_port(self) -> int:
        return self.listen.port

    @property
    def controller_address(self) -> str:
        """The address at which the host itself reaches the controller."""
        return str(self.listen.from_host)

    @property
    def speaks_tls(self) -> bool:
        """Whether the controller itself serves HTTPS."""
        return CERTIFICATE in self.secrets

    def concerns(self, *targets: Target) -> bool:
        """Whether this deployment includes a part that belongs to `targets`."""
        return self.target == "all" or self.target in targets


def check_host_data(values: dict[str, Any], host: str) -> HostData:
    """Check the values of one host. Raises ConfigError naming the host and each wrong key."""
    values = {str(key): each for key, each in values.items()}
    way = {key: each for key, each in values.items() if key.startswith(PREFIX)}
    own = {key: each for key, each in values.items() if not key.startswith(FOREIGN_PREFIXES)}
    found = [*_wrong(SshSettings, way), *_unknown_to_pyinfra(values)]
    try:
        site = HostData.model_validate(own)
    except ValidationError as error:
        found += _named(error, HostData)
    else:
        found += contradictions(site)
    if found:
        refuse(host, found)
    return site


def _unknown_to_pyinfra(values: dict[str, Any]) -> list[Problem]:
    """Return keys that look like arguments of pyinfra's operations, but are none."""
    given = [key for key in values if key.startswith("_")]
    if not given:
        return []
    from pyinfra.api.arguments import all_global_arguments  # slow, and seldom needed

    known = [name for name, _ in all_global_arguments()]
    unknown = [key for key in given if key not in known]
    return [(key, f"pyinfra has no such argument{near(key, known)}") for key in unknown]


def _wrong(model: type[BaseModel], values: dict[str, Any]) -> list[Problem]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        return _named(error, model)
    return []


def _named(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    return [(dotted(path) or "the host", words) for path, words in problems_of(error, model)]


def refuse(host: str, found: Iterable[Problem]) -> NoReturn:
    """Raise ConfigError with all that is wrong in the inventory's values of a host."""
    words = "; ".join(f"{key}: {why}" for key, why in found)
    raise ConfigError(
        f"inventory: {host}: {words}", "inventory/production.example.py shows every key"
    )
