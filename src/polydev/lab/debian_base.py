"""Make the Debian root filesystem that labs share: built once, then only read.

It resembles a new server of a hosting provider, a small system that answers SSH. Packages that a
deployment installs (hypervisor, dnsmasq, nftables) are left out on purpose.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from polydev.errors import CommandError, ConfigError, LabError
from polydev.processes import run, run_lines
from polydev.progress import Steps
from polydev.settings import Settings

# Suites that a lab can have, with their common names; the first one is the default.
SUITES: Mapping[str, str] = {"bookworm": "Debian 12", "trixie": "Debian 13"}
DEFAULT_SUITE = next(iter(SUITES))
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = (
    *("ca-certificates", "dbus", "debian-archive-keyring", "iproute2", "iputils-ping", "kmod"),
    *("less", "libnss-systemd", "libpam-systemd", "nano", "netbase", "openssh-server", "procps"),
    *("python3", "sudo", "systemd", "systemd-sysv", "tzdata", "udev"),
)
# Path and content; all belong to root, and everybody may read those that are not PRIVATE.
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
# Each lab has its own host key and machine id. apt's timers are off: they could hold apt's
# lock during a test.
_FINISH = """
chroot "$1" useradd --create-home --shell /bin/bash --password '*' deploy
chroot "$1" install -d -m 0700 -o deploy -g deploy /home/deploy/.ssh
chroot "$1" systemctl enable systemd-networkd.service
chroot "$1" systemctl disable apt-daily.timer apt-daily-upgrade.timer
rm -f "$1"/etc/ssh/ssh_host_* "$1/etc/machine-id" "$1/etc/resolv.conf" "$1/etc/hostname"
"""


def checked_suite(suite: str) -> str:
    """Return `suite` if a lab can have it. Raises ConfigError."""
    if suite not in SUITES:
        raise ConfigError(
            f"a lab cannot have the suite {suite!r}",
            "choose one: " + ", ".join(f"{name} ({called})" for name, called in SUITES.items()),
        )
    return suite


def ready_root(suite: str, settings: Settings, steps: Steps) -> Path:
    """Return the root filesystem of a suite; make it if it is missing. Raises LabError."""
    targets = ["apt-get", "indextargets", "--format", INDEX_FIELDS, "Created-By: Packages"]
    sources = package_sources(suite, run(targets).stdout)
    folder = settings.cache.absolute() / "lab"
    root = folder / root_id(suite, sources)
    if root.is_dir():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "root.lock").open("w") as lock,
        steps.step(f"lab's root filesystem, {suite}") as step,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.is_dir():
            building = folder / "building"
            shutil.rmtree(building, ignore_errors=True)
            try:
                _make(building, suite, sources, step.say)
                building.rename(root)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
    return root


def root_id(suite: str, sources: Sequence[str]) -> str:
    """Return the name of the tree: a hash of the suite, its package sources and our settings."""
    inputs = [suite, PACKAGES, dict(FILES), sorted(PRIVATE), _FINISH, list(sources)]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


INDEX_FIELDS = "$(SITE)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
POCKETS = ("", "-updates", "-security")


def package_sources(suite: str, targets: str) -> list[str]:
    """Return apt's source lines of Debian's archives for a suite, from the targets of apt.

    If this machine's apt does not know the suite, its mirrors of another suite are used. If it
    knows none of them, the list is empty: mmdebstrap then uses its own mirrors.
    """
    for known in (suite, *SUITES):
        lines = {
            f"deb [signed-by={KEYRING}] {site} {suite}{pocket} main"
            for site, pocket in _mirrors(known, targets)
        }
        if lines:
            return sorted(lines)
    return []


def _mirrors(suite: str, targets: str) -> Iterator[tuple[str, str]]:
    """Yield each site of a suite, with the suffix of the suite's name there."""
    for target in targets.splitlines():
        site, release, component, origin = target.split("|")
        pocket = release.removeprefix(suite)
        # Before the first `apt-get update` apt does not know the origin and echoes the field.
        of_debian = component == "main" and origin in ("Debian", "$(ORIGIN)", "")
        if of_debian and release == suite + pocket and pocket in POCKETS:
            yield site, pocket


def mmdebstrap_argv(target: Path, suite: str, sources: Sequence[str]) -> list[str]:
    """Return the command that makes the tree, in namespaces so that a kill leaves no mount."""
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
        *("--mount-proc", "mmdebstrap", "--variant=minbase", "--mode=root"),
        f"--keyring={KEYRING}",
        f"--include={','.join(PACKAGES)}",
        f"--customize-hook={_FINISH}",
        *(suite, str(target), *sources),
    ]


def _make(target: Path, suite: str, sources: Sequence[str], say: Callable[[str], None]) -> None:
    try:
        run_lines(mmdebstrap_argv(target, suite, sources), say)
    except CommandError as error:
        raise LabError(
            f"the root filesystem of a lab with {SUITES[suite]} ({suite}) could not be made: "
            f"{error.stderr_tail or error.message}",
            f"check that this machine's apt works (apt-get update) and that its mirror has {suite}"
            f" ({', '.join(_places(sources)) or 'the usual one'}); then run the same command again",
        ) from error
    for path, content in FILES.items():
        file = target / path
        file.write_text(content)
        file.chmod(0o440 if path in PRIVATE else 0o644)


def _places(sources: Sequence[str]) -> list[str]:
    """Return the URLs of the suites in source lines."""
    words = [line.split() for line in sources]
    return [f"{site.rstrip('/')}/dists/{release}" for _, _, site, release, _ in words]
