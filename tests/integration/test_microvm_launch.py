"""The program of a VM's unit, with a fake QEMU and a socket in place of systemd."""

from __future__ import annotations

import array
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polydev.errors import VmError
from polydev.processes import Process, end_group, run, spawn
from polydev.vm.launch_file import LaunchFile, launch_file_text
from polydev.vm.template_client import FILES, STATE, clone_files, fetch
from polydev.vm.template_store import Template, TemplateStore, file_sums

LAUNCH = """
import sys
from pathlib import Path
from polydev.vm import launch, template_client
launch.ROOT = Path(sys.argv[1])
template_client.fetch.__defaults__ = (launch.ROOT / "templates.sock",)
sys.exit(launch.main(["2"]))
"""
# A fake QEMU that sends the QMP greeting on its inherited socket, and logs its process id.
QEMU = """#!{python}
import json, os, re, socket, sys
listener = socket.socket(fileno=int(re.search(r"fd=(\\d+)", " ".join(sys.argv))[1]))
print(json.dumps({{"pid": os.getpid(), "notify": os.environ.get("NOTIFY_SOCKET")}}), flush=True)
client, _ = listener.accept()
client.sendall(b'{{"QMP": {{}}}}')
client.recv(1)
listener.accept()
"""
# A fake QEMU that waits for the state of its devices, and reports the result of loading it.
INCOMING_QEMU = """#!{python}
import json, re, socket, sys
words = " ".join(sys.argv)
print(words, flush=True)
listener = socket.socket(fileno=int(re.search(r"fd=(\\d+),server", words)[1]))
client, _ = listener.accept()
version = {{"qemu": {{"major": 7, "minor": 2, "micro": 0}}, "package": ""}}
def say(what):
    client.sendall(json.dumps(what).encode() + b"\\n")
say({{"QMP": {{"version": version, "capabilities": []}}}})
text = ""
while data := client.recv(4096):
    text += data.decode()
    while text.lstrip().startswith("{{"):
        try:
            asked, end = json.JSONDecoder().raw_decode(text.lstrip())
        except ValueError:  # the rest is still to come
            break
        text = text.lstrip()[end:]
        print(asked["execute"], json.dumps(asked.get("arguments")), flush=True)
        found = {{"status": "{status}"}} if asked["execute"] == "query-migrate" else {{}}
        say({{"return": found, "id": asked.get("id")}})
listener.accept()
"""
HOLD = """
import os, sys
from polydev.vm import template_holder
if seconds := sys.argv[3:]:
    template_holder.QUESTION_SECONDS = float(seconds[0])
os.dup2(int(sys.argv[1]), template_holder.FIRST_DESCRIPTOR)
sys.exit(template_holder.main(sys.argv[2:3]))
"""
KEY, DAMAGED, UNKNOWN = "a" * 64, "b" * 64, "c" * 64
BROKEN_QEMU = """#!/bin/sh
echo 'could not configure /dev/net/tun (tap0)' >&2
exit 3
"""
QEMU_IMG = '#!/bin/sh\nfor disk; do :; done; : >"$disk"\n'
# Until something that should have come counts as missing.
SECONDS = 120
# Until the holder no longer waits for a client that says nothing.
SILENCE_SECONDS = 2


@dataclass
class Slot:
    """A slot's folder with a VM's launch.json, an image, programs and systemd's socket."""

    root: Path
    systemd: socket.socket

    @property
    def folder(self) -> Path:
        return self.root / "2" / "vm"

    @property
    def lock(self) -> Path:
        return self.root / "image" / "in-use.lock"

    def program(self, name: str, text: str) -> None:
        file = self.root / "bin" / name
        file.write_text(text)
        file.chmod(0o755)

    def write_launch_file(self, template: str | None = None) -> None:
        launch_file = LaunchFile(
            "vm", "mine", str(self.root / "image"), "d" * 64, 1, 128, 32, template
        )
        (self.root / "2/vm/launch.json").write_text(launch_file_text(launch_file))

    def launch(self) -> Process:
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        env = {"PATH": path, "NOTIFY_SOCKET": str(self.root / "notify")}
        with (self.root / "journal").open("wb") as journal:
            argv = [sys.executable, "-c", LAUNCH, str(self.root)]
            return spawn(argv, env=env, stdout=journal, stderr=journal)

    def hear(self) -> str:
        """Return the next message to systemd; release its barrier at the end."""
        size = array.array("i", [0]).itemsize
        said, extra, *_ = self.systemd.recvmsg(100, socket.CMSG_SPACE(size))
        for _level, _kind, data in extra:
            os.close(int.from_bytes(data[:size], sys.byteorder))
        return said.decode()

    def said(self, name: str) -> str:
        return (self.root / name).read_text()


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Slot]:
    for name in ("2/vm", "image", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "2/current").symlink_to("vm")
    (tmp_path / "image/cmdline").write_text("root=/dev/vda")
    (tmp_path / "image/in-use.lock").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(SECONDS)
        slot = Slot(tmp_path, systemd)
        slot.write_launch_file()
        slot.program("qemu-img", QEMU_IMG)
        yield slot


def is_held(lock: Path, wait_seconds: int = 0) -> bool:
    words = ("--wait", str(wait_seconds))
    return run(["flock", *words, lock, "true"], check=False).status != 0


def is_released(lock: Path) -> bool:
    """Wait for the lock, which the process that notifies systemd holds until its end."""
    return not is_held(lock, SECONDS)


def test_launcher_becomes_qemu_and_notifies_systemd_when_ready(slot: Slot) -> None:
    slot.program("qemu-system-x86_64", QEMU.format(python=sys.executable))
    process = slot.launch()
    try:
        assert [slot.hear(), slot.hear()] == ["READY=1", "BARRIER=1"]
        known = json.loads((slot.folder / "qemu.log").read_text())
        assert known == {"pid": process.pid, "notify": None}
        assert (slot.folder / "disk.qcow2").exists()
        assert is_held(slot.lock)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        assert children == "", "somebody stays beside it"
    finally:
        end_group(process)
    assert is_released(slot.lock)


def test_failed_qemu_ends_the_unit_and_keeps_its_output(slot: Slot) -> None:
    slot.program("qemu-system-x86_64", BROKEN_QEMU)
    assert slot.launch().wait(SECONDS) == 3
    words = "could not configure /dev/net/tun (tap0)\n"
    assert (slot.folder / "qemu.log").read_text() == words
    slot.systemd.settimeout(0)
    with pytest.raises(BlockingIOError):
        slot.hear()
    assert is_released(slot.lock)


def test_qemu_killed_before_qmp_greeting_ends_the_unit(slot: Slot) -> None:
    slot.program("qemu-system-x86_64", "#!/bin/sh\nkill -9 $$\n")
    assert slot.launch().wait(SECONDS) == -signal.SIGKILL


def test_missing_qemu_is_reported(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert slot.launch().wait(SECONDS) == 1
    assert "program not found: qemu-system-x86_64" in slot.said("2/vm/qemu.log")


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("image/cmdline", "image dddddddddddd is missing"),
        ("image/in-use.lock", "in-use.lock"),
        ("2/vm/launch.json", "launch.json cannot be read"),
    ],
)
def test_missing_files_are_reported_in_journal_and_qemu_log(
    slot: Slot, gone: str, words: str
) -> None:
    (slot.root / gone).unlink()
    assert slot.launch().wait(SECONDS) == 1
    assert words in slot.said("journal")
    assert words in slot.said("2/vm/qemu.log")


def test_slot_without_current_vm_is_reported(slot: Slot) -> None:
    (slot.root / "2/current").unlink()
    assert slot.launch().wait(SECONDS) == 1
    assert f"{slot.root}/2 does not name a VM" in slot.said("journal")


@pytest.fixture
def holder(slot: Slot, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The socket of a holder with a template, and one whose state does not match its record.

    Its parameter, if any, is how long it waits for a silent client.
    """
    templates = TemplateStore(slot.root / "templates")
    for key in (KEY, DAMAGED):
        with templates.incoming() as folder:
            for name in FILES:
                (folder / name).write_bytes(f"{name} of a template".encode())
            template = template_in(folder, key, 1)
            if key == DAMAGED:
                (folder / STATE).write_bytes(b"another")
            templates.add(folder, template)
    place = slot.root / "templates.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        argv = [sys.executable, "-c", HOLD, str(listener.fileno()), str(templates.folder)]
        if hasattr(request, "param"):
            argv.append(str(request.param))
        process = spawn(argv, pass_fds=(listener.fileno(),))
        try:
            yield place
        finally:
            end_group(process)


def template_in(folder: Path, key: str, made_at: float) -> Template:
    words = (key, "d" * 64, "QEMU", "tcg", 1, 128)
    return Template(*words, file_sums(folder), made_at, boot_seconds=1, seconds=1)


def test_clone_is_ready_once_its_state_is_loaded(slot: Slot, holder: Path) -> None:
    slot.program(
        "qemu-system-x86_64", INCOMING_QEMU.format(python=sys.executable, status="completed")
    )
    slot.write_launch_file(KEY)
    process = slot.launch()
    try:
        assert [slot.hear(), slot.hear()] == ["READY=1", "BARRIER=1"]
        words, *asked = slot.said("2/vm/qemu.log").splitlines()
        memory = re.search(r"mem-path=(/proc/self/fd/\d+),share=off", words)
        assert memory is not None
        held = Path(f"/proc/{process.pid}/fd") / Path(memory[1]).name
        assert held.read_bytes() == b"memory of a template"
        assert (slot.folder / "disk.qcow2").read_bytes() == b"disk.qcow2 of a template"
        assert [line.partition(" ")[0] for line in asked] == [
            "qmp_capabilities",
            "migrate-set-capabilities",
            "migrate-incoming",
            "query-migrate",
        ]
        state = re.search(r"fd:(\d+)", asked[2])
        assert state is not None
        assert (held.parent / state[1]).read_bytes() == b"state of a template"
    finally:
        end_group(process)


def test_clone_with_failed_load_ends_with_reason(slot: Slot, holder: Path) -> None:
    slot.program("qemu-system-x86_64", INCOMING_QEMU.format(python=sys.executable, status="failed"))
    slot.write_launch_file(KEY)
    assert slot.launch().wait(SECONDS) == -signal.SIGTERM
    assert is_released(slot.lock)
    assert "QEMU could not move the state of its devices" in slot.said("journal")
    slot.systemd.settimeout(0)
    with pytest.raises(BlockingIOError):
        slot.hear()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (UNKNOWN, "no template from its holder: there is no template cccccccccccc"),
        (DAMAGED, "template bbbbbbbbbbbb is damaged: state has another checksum"),
    ],
)
def test_clone_of_missing_or_damaged_template_is_refused(
    slot: Slot, holder: Path, key: str, reason: str
) -> None:
    slot.write_launch_file(key)
    assert slot.launch().wait(SECONDS) == 1
    assert reason in slot.said("2/vm/qemu.log")
    assert reason in slot.said("journal")


def test_silent_template_holder_is_reported(slot: Slot) -> None:
    slot.write_launch_file(KEY)
    assert slot.launch().wait(SECONDS) == 1
    assert "the holder of templates does not answer: " in slot.said("journal")


def test_template_descriptors_are_read_only(holder: Path) -> None:
    for descriptor in fetch(KEY, holder):
        for write in (lambda at: os.pwrite(at, b"x", 0), lambda at: os.ftruncate(at, 1)):
            with pytest.raises(PermissionError):
                write(descriptor)
        os.close(descriptor)


def test_each_clone_reads_the_state_from_its_beginning(
    holder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "__defaults__", (holder,))
    for _ in range(2):
        descriptors = clone_files(KEY, tmp_path / "disk")
        assert [os.pread(descriptors[0], 100, 0), os.read(descriptors[1], 100)] == [
            b"memory of a template",
            b"state of a template",
        ]
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.mark.parametrize("question", [b"", b"x" * 64, b"a" * 63, b"a" * 65, b"../" * 10])
def test_holder_refuses_invalid_key(holder: Path, question: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(holder))
        client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"refused the request is not the key of a template"


@pytest.mark.parametrize("holder", [SILENCE_SECONDS], indirect=True)
def test_silent_client_does_not_block_the_holder(holder: Path) -> None:
    """The holder serves one connection per user and closes a second one at once."""
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as second:
        silent.connect(str(holder))
        second.connect(str(holder))
        assert second.recv(100) == b""
        assert silent.recv(100) == b""  # once its time is over
    for descriptor in fetch(KEY, holder):
        os.close(descriptor)


def test_removed_template_is_no_longer_handed_out(slot: Slot, holder: Path) -> None:
    for descriptor in fetch(KEY, holder):
        os.close(descriptor)
    TemplateStore(slot.root / "templates").remove(KEY)
    with pytest.raises(VmError, match="there is no template aaaaaaaaaaaa"):
        fetch(KEY, holder)


def test_rebuilt_template_replaces_the_old_one(slot: Slot, holder: Path) -> None:
    memory, *_ = first = fetch(KEY, holder)
    templates = TemplateStore(slot.root / "templates")
    with templates.incoming() as folder:
        for name in FILES:
            (folder / name).write_bytes(b"made anew")
        templates.add(folder, template_in(folder, KEY, 2))
    assert [path.name for path in templates.folder.glob("*.gone")] == []
    second = fetch(KEY, holder)
    assert os.pread(second[0], 100, 0) == b"made anew"
    # Descriptors of the old template stay valid.
    assert os.pread(memory, 100, 0) == b"memory of a template"
    for descriptor in (*first, *second):
        os.close(descriptor)
