"""The bare Debian that every lab starts from: made once, then only read.

It is what a provider hands over: a small server that answers SSH. What the deploy brings
(hypervisor, dnsmasq, nftables) is left out on purpose.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from polydev.errors import CommandError, LabError
from polydev.progress import Steps
from polydev.run import run, run_lines
from polydev.settings import Settings

SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = (
    *("ca-certificates", "dbus", "debian-archive-keyring", "iproute2", "iputils-ping", "kmod"),
    *("less", "libnss-systemd", "libpam-systemd", "nano", "netbase", "openssh-server", "procps"),
    *("python3", "sudo", "systemd", "systemd-sysv", "tzdata", "udev"),
)
# Path and content; all belong to root and are readable for all but those in PRIVATE.
FILES: Mapping[str, str] = {
    "etc/ssh/sshd_config.d/access.conf": (
        "PermitRootLogin no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    ),
    "etc/sudoers.d/deploy": "deploy ALL=(ALL:ALL) NOPASSWD: ALL\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    # Labs share what they download.
    "etc/apt/apt.conf.d/01keep": (
        'APT::Keep-Downloaded-Packages "true";\n'
        'Binary::apt::APT::Keep-Downloaded-Packages "true";\n'
    ),
}
PRIVATE = frozenset({"etc/sudoers.d/deploy"})
# Each lab has its own host key and machine id. apt's timers are off: they would hold apt's
# lock at some moment of a test.
_FINISH = """
chroot "$1" useradd --create-home --shell /bin/bash --password '*' deploy
chroot "$1" install -d -m 0700 -o deploy -g deploy /home/deploy/.ssh
chroot "$1" systemctl enable systemd-networkd.service
chroot "$1" systemctl disable apt-daily.timer apt-daily-upgrade.timer
rm -f "$1"/etc/ssh/ssh_host_* "$1/etc/machine-id" "$1/etc/resolv.conf" "$1/etc/hostname"
"""


def ready_root(settings: Settings, steps: Steps) -> Path:
    """The tree, made now if it is not there yet. Raises LabError."""
    sources = package_sources(
        run(["apt-get", "indextargets", "--format", INDEX_FIELDS, "Created-By: Packages"]).stdout
    )
    folder = settings.cache.absolute() / "lab"
    root = folder / root_id(sources)
    if root.is_dir():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "root.lock").open("w") as lock, steps.step("lab's root filesystem") as step:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.is_dir():
            building = folder / "building"
            shutil.rmtree(building, ignore_errors=True)
            try:
                _make(building, sources, step.say)
                building.rename(root)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
    return root


def root_id(sources: Sequence[str]) -> str:
    """Name of the tree that these package sources and this file give."""
    inputs = [SUITE, PACKAGES, dict(FILES), sorted(PRIVATE), _FINISH, list(sources)]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


INDEX_FIELDS = "$(SITE)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"


def package_sources(targets: str) -> list[str]:
    """apt source lines of Debian's own archives, from the targets that apt knows.

    None, where this machine's apt does not know the suite: mmdebstrap then takes its own.
    """
    wanted = {SUITE, f"{SUITE}-updates", f"{SUITE}-security"}
    lines = set()
    for target in targets.splitlines():
        site, release, component, origin = target.split("|")
        # Before the first `apt-get update` apt does not know the origin and echoes the field.
        if release in wanted and component == "main" and origin in ("Debian", "$(ORIGIN)", ""):
            lines.add(f"deb [signed-by={KEYRING}] {site} {release} main")
    return sorted(lines)


def mmdebstrap_argv(target: Path, sources: Sequence[str]) -> list[str]:
    """Makes the tree in namespaces of its own, so that killing it leaves no mount."""
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
        *("--mount-proc", "mmdebstrap", "--variant=minbase", "--mode=root"),
        f"--keyring={KEYRING}",
        f"--include={','.join(PACKAGES)}",
        f"--customize-hook={_FINISH}",
        *(SUITE, str(target), *sources),
    ]


def _make(target: Path, sources: Sequence[str], say: Callable[[str], None]) -> None:
    try:
        run_lines(mmdebstrap_argv(target, sources), say)
    except CommandError as error:
        raise LabError(
            f"the lab's root filesystem could not be made: {error.stderr_tail or error.message}",
            "check this machine's network and apt configuration (apt-get update), then run the "
            "same command again",
        ) from error
    for path, content in FILES.items():
        file = target / path
        file.write_text(content)
        file.chmod(0o440 if path in PRIVATE else 0o644)
