"""What a VM's process leaves in its folder, met by a controller that is another user: as root none
of this would be refused.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from polydev.controller.host.vm_usage import read_vm
from polydev.controller.machines.console_stream import BLOCK_BYTES, MOST_TAIL_BYTES
from polydev.controller.machines.console_stream import tail as last_lines
from polydev.controller.machines.hypervisor import Launch
from polydev.controller.machines.systemd_hypervisor import SystemdHypervisor, _tail
from polydev.controller.machines.vm_logs import (
    CHUNK_BYTES,
    LAST_BYTES,
    LogReader,
    added_since,
    last_line,
)
from polydev.controller.settings import ControllerSettings
from polydev.errors import FilesLeft, VmError
from polydev.vm.launch_file import read_launch_file
from tests.accounts import Account

CONTROLLER, VM = Account(54321), Account(54322)
SECRET = b"the controller's secret\n"
TERABYTE = 1 << 40
CLONE_NEWNS = 0x20000
DEEP = 1100  # deeper than Python calls itself


@dataclass(frozen=True)
class Place:
    """A slot of a host with the folder of a VM, as the deployment and the controller make them."""

    root: Path

    @property
    def slot(self) -> Path:
        return self.root / "microvm" / "2"

    @property
    def folder(self) -> Path:
        return self.slot / "one"

    @property
    def log(self) -> Path:
        return self.folder / "serial.log"

    @property
    def secret(self) -> Path:
        return self.root / "secret"

    def hypervisor(self) -> SystemdHypervisor:
        return SystemdHypervisor(ControllerSettings(vm_root=self.root / "microvm"))

    def discard(self, *, keep_logs: bool = False) -> None:
        """Discard the VM as the controller does after its unit has ended."""
        CONTROLLER.do(lambda: self.hypervisor()._remove(2, "one", keep_logs))

    def prepare(self) -> None:
        """Prepare the folder as the controller does before it starts the VM's unit."""
        launch = Launch("one", 2, "d" * 64, None)
        CONTROLLER.do(lambda: self.hypervisor()._prepare(launch))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


# Messages about regular files, which are kept where logs are kept.
REGULAR = ("cannot be read", "is a hard link", "is a file that")


@pytest.fixture
def place() -> Iterator[Place]:
    # Not in pytest's own folders, which are for its user only.
    root = Path(tempfile.mkdtemp(prefix="polydev-"))
    made = Place(root)
    root.chmod(0o755)
    made.slot.mkdir(parents=True)
    os.chown(made.slot, CONTROLLER.number, VM.number)
    made.slot.chmod(0o2750)
    made.secret.write_bytes(SECRET)
    os.chown(made.secret, CONTROLLER.number, CONTROLLER.number)
    made.secret.chmod(0o600)
    made.prepare()
    yield made
    shutil.rmtree(root, ignore_errors=True)


def _link(place: Place) -> None:
    VM.do(lambda: place.log.symlink_to(place.secret))


def _link_to_the_reader(place: Place) -> None:
    VM.do(lambda: place.log.symlink_to("/proc/self/environ"))


def _link_to_nothing(place: Place) -> None:
    VM.do(lambda: place.log.symlink_to("nothing"))


def _loop(place: Place) -> None:
    VM.do(lambda: place.log.symlink_to("serial.log"))


def _fifo(place: Place) -> None:
    VM.do(lambda: os.mkfifo(place.log))


def _folder(place: Place) -> None:
    VM.do(place.log.mkdir)


def _socket(place: Place) -> None:
    def bind() -> None:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(place.log))

    VM.do(bind)


def _device(place: Place) -> None:
    os.mknod(place.log, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def _mode_0(place: Place) -> None:
    def write() -> None:
        place.log.write_bytes(b"hidden")
        place.log.chmod(0)

    VM.do(write)


def _hard_link(place: Place) -> None:
    os.link(place.secret, place.log)  # as a VM may where fs.protected_hardlinks is off


def _last_name_of_a_file(place: Place) -> None:
    """A file that the controller has replaced since, as it replaces copies of its database."""
    os.link(place.secret, place.log)
    place.secret.unlink()


NOT_READ: dict[Callable[[Place], None], str] = {
    _link: "is a symbolic link",
    _link_to_the_reader: "is a symbolic link",
    _link_to_nothing: "is a symbolic link",
    _loop: "is a symbolic link",
    _fifo: "is a FIFO",
    _folder: "is a folder",
    _socket: "is a socket",
    _device: "is a character device",
    _mode_0: "cannot be read: Permission denied",
    _hard_link: "is a hard link",
    _last_name_of_a_file: "is a file that is not the VM's",
}


def _name(parameter: object) -> str:
    """Return the id of a test: the kind of file that the VM made."""
    return getattr(parameter, "__name__", "").strip("_")


def _refused(read: Callable[[], object]) -> str:
    try:
        return f"not refused: {read()!r}"
    except VmError as error:
        return error.message


@pytest.mark.parametrize(("make", "words"), NOT_READ.items(), ids=_name)
class TestSpecialFileAsLog:
    def test_special_file_is_reported_and_not_read(
        self, place: Place, make: Callable[[Place], None], words: str
    ) -> None:
        make(place)

        def read() -> dict[str, object]:
            return {
                "lines": _refused(lambda: last_lines(place.log, 10)),
                "new": _refused(lambda: added_since(place.log, 0)),
                "launch file": _refused(lambda: read_launch_file(place.log)),
                "failure": _tail(place.log),
                "boot": LogReader(place.log).read_to_end(),
                "end": last_line(place.log),
                "figures": read_vm(2, None, place.folder).disk_bytes is not None,
            }

        found = CONTROLLER.do(read)
        assert str(found["lines"]).startswith(f"serial.log {words}")
        assert found["new"] == found["launch file"] == found["failure"] == found["lines"]
        assert (found["boot"], found["end"], found["figures"]) == (b"", "", True)

    def test_special_file_is_removed_with_its_vm(
        self, place: Place, make: Callable[[Place], None], words: str
    ) -> None:
        make(place)
        place.discard(keep_logs=True)
        kept = ["serial.log"] if words.startswith(REGULAR) else []
        assert place.names() == kept
        place.discard()
        assert list(place.slot.iterdir()) == []
        assert not place.secret.exists() or place.secret.read_bytes() == SECRET


def test_regular_log_of_vm_is_read(place: Place) -> None:
    VM.do(lambda: place.log.write_bytes(b"one\ntwo\n"))
    assert CONTROLLER.do(lambda: last_lines(place.log, 1)) == (b"two\n", 8)
    assert CONTROLLER.do(lambda: LogReader(place.log).read()) == b"one\ntwo\n"


def test_link_in_middle_of_path_is_not_followed(place: Place) -> None:
    beyond = place.root / "beyond"
    beyond.mkdir()
    (beyond / "serial.log").write_bytes(SECRET)
    (place.slot / "two").symlink_to(beyond)
    with pytest.raises(VmError, match=r"cannot be read: Not a directory"):
        last_lines(place.slot / "two" / "serial.log", 1)


def test_sparse_terabyte_log_is_read_from_its_end(place: Place) -> None:
    def write() -> None:
        with place.log.open("wb") as log:
            log.write(b"the beginning\n")
            log.truncate(TERABYTE)
            log.seek(TERABYTE)
            log.write(b"\nthe end\n")

    VM.do(write)
    text, end = CONTROLLER.do(lambda: last_lines(place.log, 100))
    assert (text[-9:], end) == (b"\nthe end\n", TERABYTE + 9)
    assert len(text) <= MOST_TAIL_BYTES + BLOCK_BYTES
    everything = CONTROLLER.do(lambda: LogReader(place.log).read_to_end())
    assert everything.startswith(b"the beginning")
    assert everything.endswith(b"the end\n")
    assert len(everything) <= CHUNK_BYTES + LAST_BYTES


def test_reading_hard_linked_log_keeps_file_locks(place: Place) -> None:
    """Closing any descriptor of a file drops all locks that a process has on that file."""
    os.link(place.secret, place.log)
    with place.secret.open("r+b") as database:
        fcntl.lockf(database, fcntl.LOCK_EX)
        with pytest.raises(VmError, match="is a hard link"):
            last_lines(place.log, 10)

        def is_free() -> bool:
            with place.secret.open("r+b") as other, suppress(BlockingIOError):
                fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        assert not CONTROLLER.do(is_free)


class TestPrepare:
    """A retried start finds the files that the first attempt left."""

    def test_launch_file_that_is_a_link_is_replaced(self, place: Place) -> None:
        def replace() -> None:
            for name in ("launch.json", ".launch.json"):
                with suppress(FileNotFoundError):
                    (place.folder / name).unlink()
                (place.folder / name).symlink_to(place.secret)

        VM.do(replace)
        place.prepare()
        assert place.secret.read_bytes() == SECRET
        assert stat.S_IMODE(place.secret.stat().st_mode) == 0o600
        assert VM.do(lambda: read_launch_file(place.folder / "launch.json")).vm_id == "one"

    def test_launch_file_that_is_a_folder_is_reported(self, place: Place) -> None:
        def replace() -> None:
            (place.folder / "launch.json").unlink()
            (place.folder / "launch.json").mkdir()

        VM.do(replace)
        with pytest.raises(OSError, match="Is a directory"):
            place.prepare()


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


class TestRemoval:
    def test_deep_folders_and_odd_names_are_removed(self, place: Place) -> None:
        def fill() -> None:
            with _working_in(place.folder):
                for name in (b"a\nb", b"-rf", b"\xff\xfe", b"*", b"$(id)", b"' \""):
                    Path(os.fsdecode(name)).write_bytes(b"x")
                    Path(os.fsdecode(name + b".d")).mkdir()
                for _ in range(DEEP):
                    Path("d").mkdir()
                    os.chdir("d")

        VM.do(fill)
        found = CONTROLLER.do(lambda: read_vm(2, None, place.folder).unavailable["disk"])
        assert found == "its folder is more than 10 levels deep"
        place.discard()
        assert list(place.slot.iterdir()) == []

    @pytest.mark.parametrize("keep_logs", [False, True])
    def test_files_left_are_reported_and_closed_to_next_vm(
        self, place: Place, keep_logs: bool
    ) -> None:
        def fill() -> None:
            place.log.write_bytes(b"mine")
            (place.folder / "disk.qcow2").write_bytes(b"mine")
            (place.folder / "hidden").mkdir()
            (place.folder / "hidden" / "file").write_bytes(b"mine")
            (place.folder / "hidden").chmod(0o700)

        VM.do(fill)
        with pytest.raises(FilesLeft, match=r"of VM one could not be removed: .*hidden.*denied"):
            place.discard(keep_logs=keep_logs)
        assert place.names() == (["hidden", "serial.log"] if keep_logs else ["hidden"])
        with pytest.raises(PermissionError):
            VM.do(lambda: list(place.folder.iterdir()))
        assert not (place.slot / "current").exists()

    def test_mounts_in_the_folder_are_kept(self, place: Place) -> None:
        mounted = place.folder / "mounted"
        mounted.mkdir()
        libc = ctypes.CDLL(None, use_errno=True)

        def in_own_namespace() -> str:
            assert libc.unshare(CLONE_NEWNS) == 0
            assert libc.mount(b"none", b"/", None, 0x44000, None) == 0
            assert libc.mount(b"tmpfs", bytes(mounted), b"tmpfs", 0, None) == 0
            (mounted / "file").write_bytes(b"not the VM's")
            with pytest.raises(FilesLeft):
                place.hypervisor()._remove(2, "one", keep_logs=False)
            return (mounted / "file").read_text()

        assert Account(0).do(in_own_namespace) == "not the VM's"


def test_folder_list_ignores_unexpected_files(place: Place) -> None:
    (place.slot / "two").symlink_to(place.root)
    (place.slot / "three").write_bytes(b"")
    (place.slot / "fo\nur").mkdir()
    (place.slot.parent / "7").write_bytes(b"")
    found = place.hypervisor()._folders()
    assert found == {(2, "one"), (2, "fo\nur")}
