"""Make, start, find, restart and remove labs.

A lab's folder describes it. Only the kernel knows whether it runs.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from polydev.errors import CommandTimeout, ConfigError, LabError
from polydev.lab.access import ssh_argv
from polydev.lab.addresses import allot, link_of, networks_in_use
from polydev.lab.container import console_hint, kill, link_owner, power_off, start
from polydev.lab.container_files import ARCHIVES, lay_folder, share_packages, write_lab_files
from polydev.lab.debian_base import DEFAULT_SUITE, SUITES, checked_suite, ready_root
from polydev.lab.lab_record import Lab, lab_folder, read_lab, recorded_labs
from polydev.processes import run
from polydev.progress import Steps
from polydev.settings import Settings

LOGIN_SECONDS = 120.0
# systemd gives a service 90 s to stop.
POWER_OFF_SECONDS = 120.0
POLL_SECONDS = 0.1
PROGRAMS = ("systemd-nspawn", "slirp4netns", "mmdebstrap", "ssh", "nsenter", "unshare")
# Held while addresses are chosen and links made or removed: all labs of the machine share these,
# whatever folders the settings name.
MACHINE_LOCK = Path("/run/polydev-labs.lock")


def up(name: str, settings: Settings, steps: Steps, suite: str | None = None) -> Lab:
    """Return a running lab that SSH reaches; one that runs already is not changed.

    A lab that is powered off boots with the files that it had. `suite` is the Debian release of a
    new lab; an existing lab must have it. Raises LabError, ConfigError.
    """
    wanted = None if suite is None else checked_suite(suite)
    folder = lab_folder(name, settings)
    with _lab_lock(folder):
        made = read_lab(folder)
        if made is not None and wanted is not None and made.suite != wanted:
            raise _another_suite(made, wanted)
        _check_programs()
        if made is not None and made.running():
            _wait_login(made)
            return made
        if made is not None:
            return _boot(name, lambda: made, settings, steps)
        chosen = wanted or DEFAULT_SUITE
        root = ready_root(chosen, settings, steps)
        try:
            return _boot(name, lambda: _make(folder, settings, chosen, root), settings, steps)
        except BaseException:
            _remove(folder, settings)
            raise


def down(name: str, settings: Settings) -> bool:
    """End a lab and remove its files; return whether there was one."""
    folder = lab_folder(name, settings)
    with _lab_lock(folder):
        return _remove(folder, settings)


def find(name: str, settings: Settings) -> Lab | None:
    """Return the lab of this name if it runs, else None."""
    lab = read_lab(lab_folder(name, settings))
    return lab if lab is not None and lab.running() else None


def labs(settings: Settings) -> list[Lab]:
    """Return all labs by name; those that are powered off are not `running`."""
    return recorded_labs(settings)


def restart(name: str, settings: Settings, steps: Steps | None = None) -> Lab:
    """Power a lab off and boot the same files again. Raises LabError."""
    with _made(name, settings) as lab:
        _stop(lab)
        return _boot(name, lambda: lab, settings, steps or Steps())


def save(name: str, settings: Settings) -> Lab:
    """Make a lab's present files those that `reset` returns to, and boot it again.

    Raises LabError, also if files were saved before.
    """
    with _made(name, settings) as lab:
        if lab.saved.exists():
            raise LabError(
                f"the files of lab {name} were saved before",
                f"to save others, make the lab again: ./inv lab.down --name {name}, then lab.up",
            )
        _stop(lab)
        lab.upper.rename(lab.saved)
        return _boot(name, lambda: lab, settings, Steps())


def reset(name: str, settings: Settings) -> Lab:
    """Boot a lab with the files that were saved, without those written since.

    Raises LabError, also if none were saved.
    """
    with _made(name, settings) as lab:
        if not lab.saved.is_dir():
            raise LabError(
                f"no files of lab {name} were saved", "save them first, by polydev.lab.save"
            )
        _stop(lab)
        _collect_packages(lab, settings)
        shutil.rmtree(lab.upper)
        return _boot(name, lambda: lab, settings, Steps())


@contextmanager
def _made(name: str, settings: Settings) -> Iterator[Lab]:
    """Yield a lab that exists, locked for the caller. Raises LabError if there is none."""
    folder = lab_folder(name, settings)
    with _lab_lock(folder):
        lab = read_lab(folder)
        if lab is None:
            raise LabError(f"there is no lab {name}", f"./inv lab.up --name {name}")
        yield lab


def _stop(lab: Lab) -> None:
    if lab.running():
        power_off(lab, POWER_OFF_SECONDS)


def _make(folder: Path, settings: Settings, suite: str, root: Path) -> Lab:
    """Make a lab's folder and files, with free addresses; start nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recorded = [link_of(lab.address) for lab in recorded_labs(settings)]
    gateway, address = map(str, allot([*recorded, *networks_in_use()]))
    lab = Lab(
        name=folder.name, folder=folder, suite=suite, root=root, address=address, gateway=gateway
    )
    lab.upper.mkdir(mode=0o755)
    write_lab_files(lab)
    lab.write()
    return lab


def _remove(folder: Path, settings: Settings) -> bool:
    if not folder.exists():
        return False
    lab = read_lab(folder)
    if lab is not None:
        with _locked(MACHINE_LOCK):
            if _is_ours(lab):
                kill(lab)
        _collect_packages(lab, settings)
    shutil.rmtree(folder)
    return True


def _boot(name: str, get: Callable[[], Lab], settings: Settings, steps: Steps) -> Lab:
    """Start a lab that does not run and wait until SSH lets `deploy` in.

    `get` is called while no other lab can be made or started, so the addresses that it chooses
    for a new lab stay free until the link has them.
    """
    with steps.step(f"lab {name}") as step:
        with _locked(MACHINE_LOCK):
            started = _start(get(), settings)
        step.say("waiting for SSH")
        try:
            _wait_login(started)
        except BaseException:
            kill(started)
            raise
    return started


def _start(lab: Lab, settings: Settings) -> Lab:
    """Add the packages that all labs share and start the container. Raises LabError."""
    if not lab.root.is_dir():
        raise LabError(
            f"lab {lab.name} cannot start: its root filesystem {lab.root} is missing",
            f"make it again: ./inv lab.down --name {lab.name}, then lab.up",
        )
    for other in recorded_labs(settings):
        _collect_packages(other, settings)
    lab.upper.mkdir(mode=0o755, exist_ok=True)
    archives = lay_folder(lab, Path(ARCHIVES))
    share_packages(_shared_packages(settings), archives)
    _clear(lab)
    return start(lab)


def _clear(lab: Lab) -> None:
    """Kill what is left of a previous run. Raises LabError if its name or link is taken."""
    if not _is_ours(lab):
        raise LabError(
            f"another lab {lab.name} runs on this machine: {link_owner(lab)}",
            "choose another name, or end that lab",
        )
    kill(lab)
    if any(link_of(lab.address).overlaps(each) for each in networks_in_use()):
        raise LabError(
            f"other networks use the addresses of lab {lab.name} now: {link_of(lab.address)}",
            f"make it again: ./inv lab.down --name {lab.name}, then lab.up",
        )


def _wait_login(lab: Lab) -> None:
    # Should we be killed, the attempt ends with us.
    login = ssh_argv(lab, ["sudo", "-n", "true"], timeout_seconds=5)
    attempt = ["setpriv", "--pdeathsig", "KILL", *login]
    deadline = time.monotonic() + LOGIN_SECONDS
    said = ""
    while time.monotonic() < deadline:
        if not lab.running():
            raise LabError(f"lab {lab.name} ended while it booted", console_hint(lab))
        try:
            done = run(attempt, check=False, timeout_seconds=30)
            said = done.stderr
        except CommandTimeout as error:
            said = error.message
        else:
            if done.status == 0:
                return
        time.sleep(POLL_SECONDS)
    said = said.strip() or "nothing"
    raise LabError(
        f"cannot log in to lab {lab.name} ({lab.address}) within {LOGIN_SECONDS:.0f} s; "
        f"SSH says: {said}",
        console_hint(lab),
    )


def _is_ours(lab: Lab) -> bool:
    return link_owner(lab) in (None, "", str(lab.folder))


def _shared_packages(settings: Settings) -> Path:
    return settings.cache / "lab" / "archives"


def _collect_packages(lab: Lab, settings: Settings) -> None:
    shared = _shared_packages(settings)
    shared.mkdir(parents=True, exist_ok=True)
    share_packages(lab.upper / ARCHIVES, shared)


def _another_suite(lab: Lab, wanted: str) -> ConfigError:
    return ConfigError(
        f"lab {lab.name} has {SUITES.get(lab.suite, lab.suite)}, not {SUITES[wanted]}",
        f"choose another name, or make it again without its files: ./inv lab.down --name {lab.name}"
        f", then ./inv lab.up --name {lab.name} --suite {wanted}",
    )


def _check_programs() -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise ConfigError(
            f"programs that labs need are missing: {', '.join(missing)}",
            "run ./inv once: it installs what is missing",
        )


def _lab_lock(folder: Path) -> AbstractContextManager[None]:
    """Return the lock that is held to make, start or end the lab of this folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return _locked(folder.with_name(f"{folder.name}.lock"))


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    try:
        lock = file.open("w")
    except PermissionError as error:
        raise ConfigError(
            "labs need root, for containers and links", "run it again with sudo"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
