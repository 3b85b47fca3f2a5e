"""Whole command lines of the programs that are started, so that no option gets lost.

Tests of results rarely notice a missing option: `--ignore-scripts`,
`--require-hashes`, `-n`. So each command line is here as a person would type it.
"""

from __future__ import annotations

import shlex
import subprocess
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import polydev.npm
from polydev.client import host_facts as client_host
from polydev.client import host_probe, operator_machine_checks
from polydev.host_setup import controller_wheels, images, rsync
from polydev.host_setup.rsync import remote_options
from polydev.hosttool import (
    accounts,
    deployment_slice,
    network_state,
    polkit,
    release_venv,
    run_controller_command,
    slot_network,
    sshd,
    sudoers,
)
from polydev.hosttool import config_file_conflicts as host_settings
from polydev.hosttool import systemd as host_systemd
from polydev.hosttool.paths import Paths
from polydev.image import apt, build, guest_npm, kernel, layer_cache, rootfs
from polydev.image.apt import Archive, Deb
from polydev.image.sandbox import Overlay, build_environment, in_overlay_argv
from polydev.lab import addresses, container_files, debian_base
from polydev.lab.access import inside_argv
from polydev.lab.container import container_argv
from polydev.ssh import SshTarget

CONTAINED = (
    "setpriv --pdeathsig KILL "
    "unshare --mount --propagation private --uts --ipc --pid --fork --kill-child --mount-proc"
)
APT_OPTIONS = (
    "-o Dir::State=T/apt -o Dir::State::lists=T/apt/lists -o Dir::State::status=T/apt/status "
    "-o Dir::Cache=T/apt -o Dir::Cache::archives=T/apt/archives "
    "-o Dir::Etc::sourcelist=T/apt/bookworm.list -o Dir::Etc::sourceparts=/dev/null "
    "-o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null "
    "-o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Install-Recommends=false "
    "-o APT::Sandbox::User=root -o Acquire::ForceHash=SHA256 -o Acquire::Languages=none "
    "-o Acquire::Retries=3"
)
SOURCES = "deb http://debian.invalid bookworm main\n"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
EPOCH = 1_700_000_000
DEB = Deb("qemu", "1:7.2", "qemu_1%3a7.2_amd64.deb", "ab", 3)


class Recorder:
    """Replacement of `run`: every program succeeds; mmdebstrap knows an archive."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[str] = []
        self.options: list[dict[str, Any]] = []
        self._folder = folder

    def __call__(self, argv: Sequence[object], *_: object, **options: Any) -> Any:
        line = shlex.join(str(word) for word in argv)
        self.lines.append(line.replace(str(self._folder), "T"))
        self.options.append(options)
        stdout: Any = b"" if options.get("capture_output") and not options.get("text") else ""
        done: Any = subprocess.CompletedProcess([], 0, stdout, SOURCES)
        done.status = 0
        return done


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(tmp_path)
    for module in (
        apt,
        build,
        kernel,
        layer_cache,
        polydev.npm,
        rootfs,
        container_files,
        debian_base,
        addresses,
    ):
        for name in ("run", "run_lines"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, recorder)
    for module in (client_host, operator_machine_checks, rsync):
        monkeypatch.setattr(module, "run", recorder)
    monkeypatch.setattr(subprocess, "run", recorder)
    return recorder


def step() -> Any:
    return SimpleNamespace(say=lambda *_: None)


def archive(tmp_path: Path) -> Archive:
    made = Archive(tmp_path / "apt", "bookworm", "amd64")
    made.folder.mkdir()
    return made


def install_npm(tmp_path: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        (tmp_path / name).write_text("{}")
    guest_npm.install(tmp_path, tmp_path / "to", step())


def refresh(tmp_path: Path) -> None:
    archive(tmp_path).refresh()


def write_initrd(tmp_path: Path) -> None:
    (tmp_path / "init").write_text("init")
    kernel.write_initrd(
        tmp_path / "initrd.img", tmp_path / "scratch", tmp_path / "init", tmp_path, [], EPOCH
    )


def make_rootfs(tmp_path: Path) -> None:
    layers = [tmp_path / "a", tmp_path / "b"]
    rootfs.make_rootfs(tmp_path / "rootfs", layers, [], 1, EPOCH, tmp_path)


def bootstrap(tmp_path: Path) -> None:
    there = archive(tmp_path)
    there.sources.write_text("deb [signed-by=k] http://debian.invalid bookworm main\n")
    recipe: Any = SimpleNamespace(
        exclude=["/usr/share/doc/*"],
        include=["/usr/share/doc/x"],
        architecture="amd64",
        suite="bookworm",
        source_date_epoch=EPOCH,
    )
    plan: Any = SimpleNamespace(
        name="base", debs=[DEB], layer=SimpleNamespace(packages=["systemd", "dbus"])
    )
    cache = layer_cache.LayerCache(tmp_path / "layers", there, recipe)
    cache._bootstrap(plan, tmp_path / "tree", step())


def make_venv(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("polydev-controller==1\n")
    (tmp_path / "releases").mkdir()
    (tmp_path / "place/venv").mkdir(parents=True)
    (tmp_path / "place/venv/pyvenv.cfg").write_text("version = 3.11.2\n")
    release_venv.make_venv(tmp_path / "place", tmp_path, tmp_path, "/usr/bin/python3")


def lab_files(tmp_path: Path) -> None:
    lab: Any = SimpleNamespace(name="mine", folder=tmp_path, key=tmp_path / "key")
    with suppress(FileNotFoundError):  # no keys were made
        container_files.write_lab_files(lab)


def configure_packages(tmp_path: Path) -> None:
    paths = Paths.below(tmp_path)
    (paths.dpkg / "updates").mkdir(parents=True)
    (paths.dpkg / "updates/0001").touch()
    deployment_slice.configure_packages(paths)


def host_program(tmp_path: Path) -> run_controller_command.ControllerProgram:
    paths = Paths.below(tmp_path)
    paths.controller_home.mkdir(parents=True)
    return run_controller_command.ControllerProgram(paths, tmp_path / "release")


TARGET = SshTarget("prod", "prod.example")
SSH = (
    "ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=30 "
    "-o ServerAliveInterval=5 -o ServerAliveCountMax=6 prod.example --"
)
REAL = host_systemd.RealSystemd()

LINES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "npm packages": (
        install_npm,
        [
            f"{CONTAINED} {shlex.join(polydev.npm.npm_argv())} ci --ignore-scripts --no-audit "
            "--no-fund --os=linux --cpu=x64 --libc=glibc"
        ],
    ),
    "indexes of packages": (
        refresh,
        [
            "apt-get indextargets --format '$(SITE)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)' "
            "'Created-By: Packages'",
            "mmdebstrap --variant=custom --mode=root --skip=check/empty,check/signed-by "
            f"--keyring={KEYRING} "
            """'--setup-hook=cat "$1/etc/apt/sources.list" >&2; exit 1' bookworm /dev/null""",
            f"apt-get {APT_OPTIONS} --error-on=any -q update",
        ],
    ),
    "what a package needs": (
        lambda tmp_path: archive(tmp_path).resolve(["qemu"]),
        [
            f"apt-get {APT_OPTIONS} -o Dir::Cache::archives=T/apt/empty -qq --print-uris "
            "install qemu"
        ],
    ),
    "a package alone": (
        lambda tmp_path: archive(tmp_path).locate(["qemu"]),
        [
            f"apt-get {APT_OPTIONS} -o Dir::Cache::archives=T/apt/empty -qq --print-uris "
            "download qemu"
        ],
    ),
    "packages fetched": (
        lambda tmp_path: archive(tmp_path).fetch(["qemu"], print),
        [f"apt-get {APT_OPTIONS} -q -y install --download-only qemu"],
    ),
    "files of packages fetched": (
        lambda tmp_path: archive(tmp_path).fetch_only([DEB], print),
        [f"apt-get {APT_OPTIONS} -q -y download qemu=1:7.2"],
    ),
    "first layer": (
        bootstrap,
        [
            f"{CONTAINED} mmdebstrap --mode=root --variant=essential --format=directory "
            "--architectures=amd64 --skip=update,download/empty,essential/unlink "
            """'--setup-hook=cp -a T/apt/lists/. "$1/var/lib/apt/lists/"; """
            """mkdir -p "$1/var/cache/apt/archives"; """
            """cd T/apt/archives && cp -l qemu_1%3a7.2_amd64.deb "$1/var/cache/apt/archives/"' """
            "--dpkgopt=force-unsafe-io '--dpkgopt=path-exclude=/usr/share/doc/*' "
            "--dpkgopt=path-include=/usr/share/doc/x "
            """'--aptopt=APT::Install-Recommends "false"' --include=systemd,dbus """
            "bookworm T/tree 'deb [signed-by=k] http://debian.invalid bookworm main'"
        ],
    ),
    "initrd": (
        write_initrd,
        ["cpio --create --quiet --format=newc --owner=0:0 --reproducible --file=T/initrd.img"],
    ),
    "modules": (
        lambda tmp_path: kernel.keep_modules(tmp_path / "usr/lib/modules/6.1", []),
        ["depmod -b T/usr 6.1"],
    ),
    "root filesystem": (
        make_rootfs,
        [
            # The script and its arguments are below.
            "T/rootfs",
            "debugfs -w -f T/debugfs-commands T/rootfs",
        ],
    ),
    "tools": (
        lambda _: build.tool_versions(),
        [f"dpkg-query -W -f '${{Package}} ${{Version}}\n' {shlex.join(build.TOOLS)}"],
    ),
    "keys of a lab": (
        lab_files,
        [
            "ssh-keygen -q -t ed25519 -N '' -C 'lab mine' -f T/key",
            "ssh-keygen -q -t ed25519 -N '' -C mine -f T/ssh_host_ed25519_key",
        ],
    ),
    "routes of this machine": (
        lambda _: addresses.networks_in_use(),
        ["ip -json -4 route show table all"],
    ),
    "environment of a release": (
        make_venv,
        [
            "/usr/bin/python3 -m venv --without-pip T/place/venv",
            "T/place/venv/bin/python -I -m ensurepip --default-pip",
            "T/place/venv/bin/python -I -m pip --isolated --disable-pip-version-check install "
            "--quiet --no-index --no-deps --require-hashes --find-links T/wheels "
            "-r T/requirements.txt",
        ],
    ),
    "packages left unfinished": (
        configure_packages,
        [
            "dpkg --admindir=T/var/lib/dpkg --force-confdef --force-confold --configure -a",
        ],
    ),
    "users": (lambda _: accounts.mend([]), ["systemd-sysusers /etc/sysusers.d/polydev.conf"]),
    "sudoers": (
        lambda _: sudoers.parse("root ALL=(ALL) ALL"),
        ["cvtsudoers --expand-aliases --output-format json -"],
    ),
    "sshd": (lambda _: sshd.effective(), ["/usr/sbin/sshd -T"]),
    "sshd of a tree": (lambda tmp_path: sshd.effective(tmp_path), ["chroot T /usr/sbin/sshd -T"]),
    "states of units": (
        lambda _: REAL.states(["a.service"]),
        ["systemctl show --no-pager -p LoadState,ActiveState,UnitFileState -- a.service"],
    ),
    "sockets of a unit": (
        lambda _: REAL.declared_sockets("a.socket"),
        ["systemctl show --no-pager -P Listen -- a.socket"],
    ),
    "units in memory": (
        lambda _: REAL.loaded("a@*"),
        ["systemctl list-units --all --plain --no-legend --no-pager -- 'a@*'"],
    ),
    "a unit": (
        lambda _: REAL.act("restart", "a.service", timeout_seconds=1),
        ["systemctl --no-pager restart a.service"],
    ),
    "log of a unit": (
        lambda _: REAL.log_since("a.service", 1.5, 9),
        [
            "journalctl --sync",
            "journalctl --no-pager --quiet -o json --since @1.500000 _SYSTEMD_UNIT=a.service",
            "journalctl --no-pager --quiet -o json --since @1.500000 -u a.service",
        ],
    ),
    "run of a unit": (
        lambda _: REAL.invocation("a.service"),
        ["systemctl show --no-pager -P InvocationID -- a.service"],
    ),
    "timer": (
        lambda _: REAL.run_later("a", 90, ["b", "c d"]),
        [
            "systemd-run --quiet --unit=a --on-active=90s --timer-property=AccuracySec=100ms "
            "-- b 'c d'"
        ],
    ),
    "job": (
        lambda _: REAL.run_now("a", ["b", "c d"]),
        ["systemd-run --quiet --collect --unit=a -- b 'c d'"],
    ),
    "polkit": (
        lambda _: polkit._may("7", polkit.ACTION, "ssh.service"),
        [
            "pkcheck --action-id org.freedesktop.systemd1.manage-units --process 7 "
            "--detail unit ssh.service --detail verb start"
        ],
    ),
    "room of a host": (
        lambda _: rsync.free_bytes_in(TARGET, "/var"),
        [f"{SSH} 'sudo -n df --block-size=1 --output=avail /var'"],
    ),
    "packages of this machine": (
        lambda _: operator_machine_checks._installed(["qemu"]),
        ["dpkg-query -W -f '${Package}\t${db:Status-Status}\t${Version}\n' qemu"],
    ),
    "failed VMs": (
        lambda _: host_probe._failed_vms(),
        ["systemctl list-units --all --state=failed --plain --no-legend 'microvm@*'"],
    ),
    "health of a host": (
        lambda _: host_probe._health(),
        ["/opt/polydev-ai/bin/polydev-host health --seconds 10"],
    ),
}


@pytest.mark.parametrize("what", LINES)
def test_command_lines_are_complete(what: str, started: Recorder, tmp_path: Path) -> None:
    do, expected = LINES[what]
    do(tmp_path)
    if what == "root filesystem":
        started.lines[0] = started.lines[0].rpartition(" ")[2]
    assert started.lines == expected


def with_program(tmp_path: Path, words: str) -> None:
    made = host_program(tmp_path)
    with suppress(IndexError):  # it said nothing
        made.ask(words) if words == "ask" else made.run_through([words])


PLAIN: dict[str, object] = {"check": False, "capture_output": True, "text": True}
# Folder, environment and time limit of each program, apart from its arguments.
OPTIONS: dict[str, tuple[Callable[[Path], object], dict[str, object]]] = {
    "npm packages": (install_npm, {"cwd": "T/to"}),
    "indexes of packages": (refresh, {"timeout_seconds": 600}),
    "files of packages fetched": (
        lambda tmp_path: archive(tmp_path).fetch_only([DEB], print),
        {"cwd": "T/apt/archives"},
    ),
    "first layer": (
        bootstrap,
        {"env": build_environment(EPOCH), "inherit": False, "log_file": "T/logs/layer-base.log"},
    ),
    "initrd": (write_initrd, {"input": "dev\ninit\nmodules\nproc\ntarget\n", "cwd": "T/scratch"}),
    "times in the root filesystem": (
        make_rootfs,
        {"env": build_environment(EPOCH), "inherit": False},
    ),
    "environment of a release": (make_venv, PLAIN | {"cwd": "/", "umask": 0o022}),
    "packages left unfinished": (
        configure_packages,
        {
            **PLAIN,
            "stdin": subprocess.DEVNULL,
            "errors": "replace",
            "timeout": deployment_slice.CONFIGURE_SECONDS,
        },
    ),
    "users": (lambda _: accounts.mend([]), PLAIN),
    "sudoers": (lambda _: sudoers.parse("root"), PLAIN | {"input": "root"}),
    "sshd": (lambda _: sshd.effective(), PLAIN),
    "a unit": (
        lambda _: REAL.act("restart", "a.service", timeout_seconds=7),
        PLAIN | {"stdin": subprocess.DEVNULL, "errors": "replace", "timeout": 7},
    ),
    "polkit": (lambda _: polkit._may("7", polkit.ACTION, "ssh.service"), PLAIN),
    "a slot": (lambda _: slot_network._run(["ip"], "text"), PLAIN | {"input": "text"}),
    "the network": (
        lambda _: network_state.run_with_input(["ip"], "text"),
        PLAIN | {"input": "text", "errors": "replace", "timeout": network_state.ANSWER_SECONDS},
    ),
    "a setting": (
        lambda _: host_settings._run(["networkctl", "reload"]),
        {"check": False, "capture_output": True},
    ),
    "the controller, asked": (
        lambda tmp_path: with_program(tmp_path, "ask"),
        {
            **PLAIN,
            "stdin": subprocess.DEVNULL,
            "errors": "replace",
            "cwd": "/",
            "umask": 0o077,
        },
    ),
    "the controller itself": (
        lambda tmp_path: with_program(tmp_path, "user"),
        {"check": False, "cwd": "/", "umask": 0o077},
    ),
    "the probe's": (
        lambda _: host_probe._run(["a"], "text"),
        {
            "check": False,
            "capture_output": True,
            "input": b"text",
            "timeout": host_probe.COMMAND_SECONDS,
        },
    ),
    "QEMU's version": (lambda _: operator_machine_checks._said(["qemu"]), {"timeout_seconds": 20}),
    "room of a host": (lambda _: rsync.free_bytes_in(TARGET, "/var"), {"check": False}),
}
# These depend on the environment in which the tests run.
NOT_COMPARED = {
    "packages left unfinished": ("env",),
    "the controller, asked": ("env",),
    "the controller itself": ("env",),
    "the probe's": ("env",),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_run_options_are_complete(what: str, started: Recorder, tmp_path: Path) -> None:
    do, expected = OPTIONS[what]
    do(tmp_path)
    found = {
        name: str(value).replace(str(tmp_path), "T") if isinstance(value, Path) else value
        for name, value in started.options[-1].items()
        if name not in NOT_COMPARED.get(what, ())
    }
    assert found == expected


def test_programs_run_with_c_locale_and_user_environment(started: Recorder, tmp_path: Path) -> None:
    host_probe._run(["a"])
    configure_packages(tmp_path)
    with_program(tmp_path, "ask")
    probes, dpkgs, controllers = (options["env"] for options in started.options)
    assert probes["LC_ALL"] == "C.UTF-8"
    assert dpkgs["DEBIAN_FRONTEND"] == "noninteractive"
    assert controllers["LANG"] == "C.UTF-8"
    assert controllers["PYTHONDONTWRITEBYTECODE"] == "1"
    assert controllers["USER"] == controllers["LOGNAME"] == "root"
    assert controllers["HOME"].endswith("/var/lib/master-controller")


def test_build_environment_is_independent_of_the_machine() -> None:
    assert build_environment(EPOCH) == {
        "DEBIAN_FRONTEND": "noninteractive",
        "E2FSPROGS_FAKE_TIME": str(EPOCH),
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SOURCE_DATE_EPOCH": str(EPOCH),
    }


@pytest.mark.parametrize(
    ("overlay", "options"),
    [
        (Overlay((), Path("/at")), ""),
        (
            Overlay((Path("/low"), Path("/high")), Path("/at")),
            "lowerdir=/high:/low,index=off,metacopy=off,redirect_dir=off,xino=off",
        ),
        (
            Overlay((Path("/low"),), Path("/at"), Path("/up"), Path("/work")),
            "lowerdir=/low,upperdir=/up,workdir=/work,"
            "index=off,metacopy=off,redirect_dir=off,xino=off",
        ),
    ],
)
@pytest.mark.parametrize("for_chroot", [False, True])
def test_overlay_is_mounted_in_its_own_namespace(
    overlay: Overlay, options: str, for_chroot: bool
) -> None:
    argv = in_overlay_argv(overlay, ["true", "x"], for_chroot=for_chroot)
    contained = shlex.split(CONTAINED)
    assert argv[: len(contained)] == contained
    shell, script = argv[len(contained) :][:3], argv[len(contained) + 4 :]
    assert shell == ["sh", "-eu", "-c"]
    assert script == ["sandbox", options, "/at", "chroot" if for_chroot else "", "true", "x"]


def test_mkfs_command_line() -> None:
    argv = rootfs.mkfs_argv(Path("/f"), Path("/t"), 10, uuid.UUID(int=7))
    identity = "00000000-0000-0000-0000-000000000007"
    assert shlex.join(argv) == (
        f"mkfs.ext4 -q -F -L polydev-root -m 0 -b 4096 -I 256 -N 65546 -U {identity} "
        f"-E hash_seed={identity},lazy_itable_init=0,root_owner=0:0 "
        "-O '^has_journal,^metadata_csum,^uninit_bg,^resize_inode' -d /t /f"
    )


def test_root_filesystem_is_made_with_the_build_environment(
    started: Recorder, tmp_path: Path
) -> None:
    make_rootfs(tmp_path)
    mkfs, debugfs = started.options
    assert mkfs == debugfs == {"env": build_environment(EPOCH), "inherit": False}
    assert not (tmp_path / "debugfs-commands").exists()


def test_lab_is_entered_with_its_own_environment() -> None:
    assert shlex.join(inside_argv(7)) == (
        "nsenter --target 7 --all -- env --chdir=/ -i "
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb "
        "LANG=C.UTF-8"
    )


def test_lab_container_command_line(tmp_path: Path) -> None:
    lab: Any = SimpleNamespace(
        name="mine",
        folder=Path("/lab"),
        lower=(Path("/a"), Path("/b")),
        veth="ve-mine",
        gateway="198.51.100.1",
    )
    argv = container_argv(lab, Path("/cgroup"), kvm=True)
    script = argv.index("-c") + 1
    del argv[script]
    assert shlex.join(argv) == (
        "unshare --mount --propagation private --pid --fork --kill-child --mount-proc sh -eu -c "
        "lab /lab /a:/b ve-mine 198.51.100.1 /cgroup "
        "env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_API_VFS_WRITABLE=network "
        "systemd-nspawn --quiet --settings=no --register=no --keep-unit --boot "
        "--directory=/lab/mounted --machine=mine --network-namespace-path=/lab/netns "
        "--capability=all '--system-call-filter=bpf @keyring' --console=read-only "
        "--link-journal=no --resolv-conf=off --timezone=off "
        "--bind=/run/systemd/nspawn/devices/tun:/dev/net/tun "
        "--bind=/run/systemd/nspawn/devices/kvm:/dev/kvm"
    )
    assert container_argv(lab, Path("/cgroup"), kvm=False) == [
        *argv[:script],
        container_argv(lab, Path("/cgroup"), kvm=True)[script],
        *argv[script:-1],
    ]


def test_lab_base_mmdebstrap_command_line() -> None:
    argv = debian_base.mmdebstrap_argv(Path("/t"), "bookworm", ["deb x"])
    hook = next(word for word in argv if word.startswith("--customize-hook="))
    argv.remove(hook)
    assert shlex.join(argv) == (
        "setpriv --pdeathsig KILL unshare --mount --propagation private --pid --fork --kill-child "
        f"--mount-proc mmdebstrap --variant=minbase --mode=root --keyring={KEYRING} "
        f"--include={','.join(debian_base.PACKAGES)} bookworm /t 'deb x'"
    )


def test_pip_download_requires_hashes() -> None:
    words = controller_wheels.pip_download_words(Path("r.txt"), Path("to"), "3.12")
    platforms = " ".join(f"--platform {each}" for each in controller_wheels.PLATFORMS)
    assert shlex.join(str(word) for word in words) == (
        "-m pip download --quiet --no-input --disable-pip-version-check --require-hashes "
        "--no-deps --only-binary :all: --implementation cp --python-version 3.12 "
        f"{platforms} --dest to --requirement r.txt"
    )


@pytest.mark.parametrize("basis", [None, "b" * 64])
def test_image_rsync_command_line(basis: str | None) -> None:
    store = "/var/lib/firecracker/snapshots/base"
    against = f"--copy-dest={store}/images/{basis} " if basis else ""
    shell = shlex.quote(f"--rsh={TARGET.rsync_shell()}")
    argv = images.rsync_argv(TARGET, Path("/here"), "a" * 64, basis)
    reader = shlex.quote(remote_options(TARGET, None)[0])
    assert shlex.join(argv) == (
        "rsync --archive --sparse --stats --compress --compress-choice=zstd --compress-level=1 "
        f"--no-owner --no-group --exclude=in-use.lock {reader} {shell} {against}/here/ "
        f"prod.example:{store}/incoming/{'a' * 64}/"
    )
