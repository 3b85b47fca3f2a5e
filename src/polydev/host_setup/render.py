"""Render templates, and hash the configuration that a unit is started with. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateNotFound

from polydev.host_setup.checkout_errors import changed

TEMPLATES = Path("templates")
SUFFIX = ".j2"
STAMPS = "/run/polydev/config"
UNITS = "/etc/systemd/system"
# System calls of systemd's group @system-service that none of our units needs. io_uring, in @aio,
# bypasses the filter of system calls and of socket families. The others reach into other processes,
# into the kernel's keyrings, and past the paths of files.
FORBIDDEN_CALLS = (
    "@aio @debug @keyring kcmp name_to_handle_at process_madvise process_vm_readv "
    "process_vm_writev userfaultfd"
)


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(  # noqa: S701  (configuration files, not pages)
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["forbidden_calls"] = FORBIDDEN_CALLS
    return environment


def render(path: str, values: dict[str, Any], root: Path = Path()) -> str:
    """Return the text of `path` on the host. Raises ConfigError if it has no template."""
    name, folder = f"{path.lstrip('/')}{SUFFIX}", (root / TEMPLATES).resolve()
    try:
        return _environment(folder).get_template(name).render(values)
    except TemplateNotFound as error:
        raise changed(str(folder / str(error))) from error


def config_hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def stamp_command(config: str) -> str:
    """Return the command of a unit that writes down the configuration that it is started with."""
    return f"+/bin/sh -c 'mkdir -p {STAMPS} && echo {config} >{STAMPS}/%n'"


def render_unit(
    name: str, values: dict[str, Any], depends: Iterable[str] = (), root: Path = Path()
) -> tuple[str, str]:
    """Return a unit file and the hash of its configuration: this file and what it reads."""
    path = f"{UNITS}/{name}"
    bare = render(path, {**values, "config": "", "stamp": ""}, root)
    config = config_hash(bare, *depends)
    text = render(path, {**values, "config": config, "stamp": stamp_command(config)}, root)
    return text, config


def template_paths(root: Path = Path()) -> list[str]:
    """Return every path on the host that has a template."""
    folder = root / TEMPLATES
    return sorted(
        "/" + path.relative_to(folder).as_posix().removesuffix(SUFFIX)
        for path in folder.rglob(f"*{SUFFIX}")
    )


def own_units(root: Path = Path()) -> list[str]:
    """Return the names of the units whose whole file is a template of ours."""
    parts = (path.rpartition("/") for path in template_paths(root))
    return [name for folder, _, name in parts if folder == UNITS]
