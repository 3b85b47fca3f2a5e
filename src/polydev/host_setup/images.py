"""The golden image: sent to the host's store once, as differences from an image there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pyinfra import logger
from pyinfra.api.command import StringCommand

from polydev.errors import ConfigError
from polydev.host_setup.host_files_and_units import STORE, TOOL
from polydev.host_setup.inventory_values import HostData
from polydev.host_setup.pyinfra_operations import run_locally, show_diff
from polydev.host_setup.pyinfra_types import Commands, concern, operation
from polydev.host_setup.rsync import remote_options, send
from polydev.image_layout import GOLDEN_LINK as GOLDEN
from polydev.image_layout import IN_USE, RECORD, image_path
from polydev.ssh import SshTarget


def wanted_image(site: HostData) -> str:
    """Return the digest of the image to deploy: the inventory's, or the operator's golden one.

    Raises ConfigError if there is none, or if it is not verified.
    """
    build = "./inv up builds, verifies and promotes one"
    if site.image is None and not (site.store / GOLDEN).exists():
        raise ConfigError(f"no golden image in {site.store}", build)
    digest = site.image or (site.store / GOLDEN).resolve().parent.name
    try:
        record = json.loads((image_path(site.store, digest) / RECORD).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"no image {digest[:12]} in {site.store}: {error}", build) from error
    if not (record.get("verification") or {}).get("passed"):
        raise ConfigError(
            f"image {digest[:12]} is not verified: only verified images are deployed",
            f"./inv golden.verify {digest[:12]}",
        )
    return digest


def rsync_argv(
    target: SshTarget,
    source: Path,
    digest: str,
    basis: str | None,
    deployment_id: str | None = None,
) -> list[str]:
    """Return the rsync command that sends an image, using the image `basis` on the host."""
    argv = ["rsync", "--archive", "--sparse", "--stats", "--compress", "--compress-choice=zstd"]
    argv += ["--compress-level=1", "--no-owner", "--no-group", f"--exclude={IN_USE}"]
    argv += remote_options(target, deployment_id)
    if basis:
        argv.append(f"--copy-dest={STORE}/images/{basis}")
    return [*argv, f"{source}/", target.remote(f"{STORE}/incoming/{digest}/")]


def bytes_sent(stats: str) -> int:
    """Return how many bytes were sent, from rsync's statistics."""
    found = re.search(r"^Total bytes sent: ([\d,]+)", stats, re.MULTILINE)
    return int(found[1].replace(",", "")) if found else 0


def send_image(site: HostData, target: SshTarget, digest: str, basis: str | None) -> None:
    source = image_path(site.store, digest)
    size = sum(path.stat().st_blocks * 512 for path in source.iterdir())
    argv = rsync_argv(target, source, digest, basis, site.deployment_id)
    done = send(argv, target, f"{STORE}/incoming/{digest}", size)
    against = f", against {basis[:12]}" if basis else ""
    logger.info(f"image {digest[:12]}: sent {bytes_sent(done.stdout)} of {size} bytes{against}")


@operation
def golden_image(site: HostData, target: SshTarget, digest: str, there: dict[str, Any]) -> Commands:
    """Put this image into the host's store and make it golden; `there` is the store's report.

    Not files.rsync: it neither uses an image there as a basis nor checks what arrived.
    """
    images, golden = there.get("images", []), there.get("golden")
    if digest not in images:
        show_diff(f"+ image {digest}")
    if golden != digest:
        show_diff(f"- golden image {golden}\n+ golden image {digest}")
    if digest not in images:
        basis = golden if golden in images else (images[-1] if images else None)
        yield StringCommand(f"mkdir -p {STORE}/incoming/{digest}")
        yield run_locally(send_image, site, target, digest, basis)
        yield StringCommand(f"{TOOL} image add --digest {digest}")
    if golden != digest:
        yield StringCommand(f"{TOOL} image golden --digest {digest}")


@concern("Images")
def images(site: HostData, target: SshTarget, there: dict[str, Any]) -> None:
    digest = wanted_image(site)
    golden_image(
        name=f"golden image {digest[:12]}", site=site, target=target, digest=digest, there=there
    )
