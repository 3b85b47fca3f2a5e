"""Write the files of one lab over the shared root: its keys, name and addresses."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from polydev.lab.addresses import LINK_PREFIX
from polydev.lab.container import DNS_ADDRESS, UPLINK
from polydev.lab.lab_record import Lab
from polydev.processes import run

HOST_KEY = "ssh_host_ed25519_key"
ARCHIVES = "var/cache/apt/archives"


def write_lab_files(lab: Lab) -> None:
    """Write the files of a new lab into its overlay, and its key and known_hosts."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {lab.name}", "-f", lab.key])
    host_key = lab.folder / HOST_KEY
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", lab.name, "-f", host_key])
    public = host_key.with_suffix(".pub").read_text()
    lab.known_hosts.write_text(f"{lab.address} {' '.join(public.split()[:2])}\n")
    for path, content in network_files(lab).items():
        lay(lab, path, content)
    lay(lab, "etc/machine-id", f"{uuid.uuid4().hex}\n", mode=0o444)
    lay(lab, f"etc/ssh/{HOST_KEY}.pub", public)
    lay(lab, f"etc/ssh/{HOST_KEY}", host_key.read_text(), mode=0o600)
    authorized = lab.key.with_suffix(".pub").read_text()
    lay(lab, f"home/{lab.user}/.ssh/authorized_keys", authorized, mode=0o600)
    host_key.unlink()
    host_key.with_suffix(".pub").unlink()


def network_files(lab: Lab) -> dict[str, str]:
    """Return path and content of the files with the lab's name and addresses."""
    return {
        "etc/hostname": f"{lab.name}\n",
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {lab.name}\n::1 localhost\n",
        "etc/resolv.conf": f"nameserver {DNS_ADDRESS}\n",
        "etc/systemd/network/10-host0.network": (
            "[Match]\nName=host0\n\n"
            f"[Network]\nAddress={lab.address}/{LINK_PREFIX}\n"
            "LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        ),
        # slirp4netns configures it, from outside.
        "etc/systemd/network/10-uplink.network": (
            f"[Match]\nName={UPLINK}\n\n[Link]\nUnmanaged=yes\n"
        ),
    }


def lay(lab: Lab, path: str, content: str, mode: int = 0o644) -> None:
    """Write a file of the lab; its owner is the owner of its folder."""
    folder = lay_folder(lab, Path(path).parent)
    file = folder / Path(path).name
    file.touch(mode=mode)
    file.write_text(content)
    owner = folder.stat()
    os.chown(file, owner.st_uid, owner.st_gid)


def lay_folder(lab: Lab, path: Path) -> Path:
    """Create a folder of the root in the lab's overlay, with the root's mode and owner."""
    for part in [*reversed(path.parents), path]:
        made, below = lab.upper / part, lab.root / part
        if not made.is_dir():
            made.mkdir()
            shutil.copystat(below, made)
            owner = below.stat()
            os.chown(made, owner.st_uid, owner.st_gid)
    return lab.upper / path


def share_packages(source: Path, target: Path) -> None:
    """Give `target` the package files that only `source` has, without copying if possible.

    apt gives a file this name when it is complete, and never writes to it again.
    """
    if not source.is_dir():
        return
    have = {file.name for file in target.glob("*.deb")}
    for file in source.glob("*.deb"):
        if file.name not in have and file.is_file():
            with suppress(FileNotFoundError):  # its lab was removed meanwhile
                _link_or_copy(file, target / file.name)


def _link_or_copy(file: Path, target: Path) -> None:
    made = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        made.hardlink_to(file)
    except OSError:  # another filesystem
        shutil.copy2(file, made)
    made.replace(target)
