"""The fastest image that really boots, for tests that start hundreds of VMs.

It is the golden image's kernel with an initrd of busybox, which stays the root: it brings up
the VM contract's address, says on the console how far it is in the words of the golden image
and answers on the contract's ports. Its root filesystem is an empty disk that nothing mounts.

A variant says how it fails; where it takes a number, `sick:7` gives another than the usual:

    healthy     it does not
    silent      init starts, the network never comes up
    panic       init ends, so the kernel panics
    deaf        all comes up, but the agent's port takes questions and never answers
    sick        healthy for the first 3 answers, 503 for all after them
    slow        network, services and agent each come 3 seconds late
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from polydev import __version__
from polydev.file_checksum import file_sha256
from polydev.host_setup.host_files_and_units import STORE
from polydev.host_setup.images import rsync_argv
from polydev.image.file_listing import allocated_bytes
from polydev.image.image_folder import read_record, record_text
from polydev.image.kernel import load_order, parse_modules_dep
from polydev.image_layout import BOOT_FILES, CMDLINE, IN_USE, INITRD, KERNEL, RECORD, ROOTFS
from polydev.image_record import FileEntry, ImageRecord, manifest_digest
from polydev.lab import run_inside
from polydev.processes import run
from polydev.ssh import SshTarget
from tests.hosts import TOOL, DeployedHost
from tests.images import said_to_be_verified
from tests.quickguest import command_line, cpio_archive, initrd_files

# Enough for many that ask at once; it boots with 88, and the kernel alone needs more than 80.
MEMORY_MIB = 128
MODULES = ("virtio_pci", "virtio_net")
BUSYBOX = Path("/bin/busybox")
ROOTFS_BYTES = 1 << 20


@dataclass(frozen=True)
class Parts:
    """The parts of a quick image; modules by file name, in the order to load them."""

    kernel: Path
    kernel_version: str
    busybox: bytes
    modules: Mapping[str, bytes]


def assemble(parts: Parts, folder: Path, variant: str) -> Path:
    """Make the image of these parts in `folder`, unless it is there; return its folder."""
    words = command_line(variant)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".quick-") as scratch:
        made = Path(scratch, "image")
        made.mkdir()
        # With its time, by which rsync knows the kernel in the golden image on a host.
        shutil.copy2(parts.kernel, made / KERNEL)
        (made / INITRD).write_bytes(cpio_archive(initrd_files(parts.busybox, parts.modules)))
        (made / CMDLINE).write_text(words)
        with (made / ROOTFS).open("wb") as disk:
            disk.truncate(ROOTFS_BYTES)
        record = quick_record(made, parts.kernel_version, variant)
        (made / RECORD).write_text(record_text(record))
        (made / IN_USE).touch(0o644)
        image = folder / record.digest
        if not image.exists():
            made.rename(image)
    return image


def quick_record(made: Path, kernel_version: str, variant: str) -> ImageRecord:
    """A record as if its boot had been verified, without which it is sent to no host."""
    paths = [made / name for name in BOOT_FILES]
    files = {
        path.name: FileEntry(
            sha256=file_sha256(path),
            size_bytes=path.stat().st_size,
            allocated_bytes=allocated_bytes(path),
        )
        for path in paths
    }
    record = ImageRecord(
        digest=manifest_digest({name: entry.sha256 for name, entry in files.items()}),
        recipe=f"quick-vm-{variant.replace(':', '-')}",
        created_at=datetime.now(timezone.utc),
        source_date_epoch=0,
        kernel_version=kernel_version,
        files=files,
        content_bytes=sum(entry.size_bytes for entry in files.values()),
        layers=[],
        packages=[],
        builder={"polydev": __version__},
        verification=None,
    )
    return said_to_be_verified(record)


def golden_parts(golden: Path) -> Parts:
    """Kernel and modules of the image in the folder `golden`, and Debian's static busybox."""
    rootfs = golden / ROOTFS
    listed = run(["debugfs", "-R", "ls -p /usr/lib/modules", rootfs]).stdout
    (release,) = re.findall(r"/(\d+\.[^/]+)/", listed)
    folder = f"/usr/lib/modules/{release}"
    dependencies = run(["debugfs", "-R", f"cat {folder}/modules.dep", rootfs]).stdout
    order = load_order(parse_modules_dep(dependencies), MODULES)
    with tempfile.TemporaryDirectory(prefix="quick-modules-") as scratch:
        commands = Path(scratch, "commands")
        commands.write_text(
            "".join(f"dump {folder}/{path} {scratch}/{Path(path).name}\n" for path in order)
        )
        run(["debugfs", "-f", commands, rootfs])
        modules = {Path(path).name: Path(scratch, Path(path).name).read_bytes() for path in order}
    version = read_record(golden).kernel_version
    return Parts(golden / KERNEL, version, BUSYBOX.read_bytes(), modules)


def make_quick_image(golden: Path, folder: Path, variant: str = "healthy") -> Path:
    """Make a quick image out of the golden one's folder; its own folder below `folder`.

    It is named by its digest: the same golden image, busybox and variant give the same.
    Raises ValueError for a variant that there is not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return assemble(golden_parts(golden), folder, variant)


def install_quick_image(host: DeployedHost, image: Path) -> str:
    """Copy the image to the lab's store and make it golden there; return its digest."""
    lab, digest = host.lab, image.name
    there = json.loads(run_inside(lab, [TOOL, "image", "list"]).stdout)
    if digest not in there["images"]:
        target = SshTarget(lab.name, lab.address, lab.user, lab.ssh_port, lab.key, lab.known_hosts)
        run_inside(lab, ["mkdir", "-p", f"{STORE}/incoming/{digest}"])
        run(rsync_argv(target, image, digest, there["golden"]))
        run_inside(lab, [TOOL, "image", "add", "--digest", digest])
    run_inside(lab, [TOOL, "image", "golden", "--digest", digest])
    return digest
