"""The inventory's keys that begin with `ssh_`, checked.

pyinfra does not check them, and our own ssh and rsync must understand them in the same way.
"""

from __future__ import annotations

import os
import re
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from polydev.validation import no_flag

PREFIX = "ssh_"
PORT = re.compile(r"(.+):(\d+)")
BY_KEY = "ssh logs in with keys, and nobody can type a password"


def check_host_name(text: str) -> str:
    """Return a name or address that ssh takes for a host. Raises ValueError."""
    if text.startswith("[") or (":" in text and not _is_ipv6(text)):
        if match := PORT.fullmatch(text):
            raise ValueError(f"write the port as ssh_port: {match[2]}, and the host without it")
        raise ValueError("write an IPv6 address without brackets")
    if "@" in text:
        raise ValueError(f"write the user as ssh_user: {text.partition('@')[0]}")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*", text):
        raise ValueError("is not a name or address of a host")
    return text


def _is_ipv6(text: str) -> bool:
    try:
        return isinstance(ip_address(text), IPv6Address)
    except ValueError:
        return False


def _user(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", text):
        raise ValueError("is not a name of a user")
    return text


def _key(text: str) -> str:
    path = Path(os.path.expanduser(text))  # noqa: PTH111  (as pyinfra)
    if not path.is_file():
        raise ValueError(f"no such file: {path.absolute()}")
    if path.suffix == ".pub":
        raise ValueError(f"this is the public key; the private one is {text.removesuffix('.pub')}")
    return text


def _known_hosts(text: str) -> str:
    if not text.isprintable() or not text or Path(os.path.expanduser(text)).is_dir():  # noqa: PTH111  (as pyinfra)
        raise ValueError("is not a name of a file")
    return text


def _config(text: str) -> str:
    if text.startswith("~"):
        raise ValueError("write the whole path: pyinfra does not expand ~ here")
    if not Path(text).is_file():
        raise ValueError(f"no such file: {Path(text).absolute()}")
    return text


class SshSettings(BaseModel):
    """Keys that ssh, rsync and pyinfra use; the other ones are for pyinfra alone, and harmless."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ssh_hostname: Annotated[str, AfterValidator(check_host_name)] | None = None
    ssh_port: Annotated[int, BeforeValidator(no_flag), Field(ge=1, le=65535)] | None = None
    ssh_user: Annotated[str, AfterValidator(_user)] | None = None
    ssh_key: Annotated[str, AfterValidator(_key)] | None = None
    ssh_known_hosts_file: Annotated[str, AfterValidator(_known_hosts)] | None = None
    ssh_config_file: Annotated[str, AfterValidator(_config)] | None = None
    ssh_strict_host_key_checking: Literal["yes", "accept-new"] | None = None
    ssh_allow_agent: bool | None = None
    ssh_look_for_keys: bool | None = None
    ssh_forward_agent: bool | None = None
    ssh_connect_retries: Annotated[int, Field(ge=0)] | None = None
    ssh_connect_retry_min_delay: Annotated[float, Field(ge=0)] | None = None
    ssh_connect_retry_max_delay: Annotated[float, Field(ge=0)] | None = None
    ssh_file_transfer_protocol: Literal["sftp", "scp"] | None = None
    ssh_paramiko_connect_kwargs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_passwords(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "ssh_password" in values:
            raise ValueError(f"ssh_password: {BY_KEY}; log in by ssh_key or the SSH agent")
        if "ssh_key_password" in values:
            raise ValueError(f"ssh_key_password: {BY_KEY}; add the key to the SSH agent")
        return values
