"""Real processes: their output, and that none outlives its timeout or an interrupt.

A process is seen to have ended by the pipe that it held open: its reader gets to the end.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import polydev
from polydev.errors import STDERR_TAIL_LINES, CommandError, CommandTimeout, ConfigError
from polydev.processes import OWNER, LineProcess, call, end_group, orphans, run, run_lines, spawn

pytestmark = pytest.mark.integration

# A shell and its child, both with the pipe $1 open, and both waiting on $2, which never ends.
FAMILY = 'exec 3>"$1"; echo begun >&3; cat "$2" & echo line; cat "$2"'
SOURCE = str(Path(polydev.__file__).parent.parent)
TIMEOUT_SECONDS = 1.0


class Pipe:
    """A named pipe read from this end; `ended` once no process holds the other one."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def ended(self, within_seconds: float = 60.0) -> bool:
        """Return whether writers came and all have gone; a dying process may need a moment."""
        waiting = select.poll()
        waiting.register(self.descriptor, 0)  # the end is always told
        return bool(waiting.poll(within_seconds * 1000)) and (
            os.read(self.descriptor, 100) == b"begun\n"
        )

    def wait_for_writer(self) -> None:
        """Wait until a process has written, without taking what it wrote."""
        waiting = select.poll()
        waiting.register(self.descriptor, select.POLLIN)
        assert waiting.poll(60_000)


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Tests that run in the background start with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    pipe = Pipe(tmp_path / "held")
    yield pipe
    os.close(pipe.descriptor)


@pytest.fixture
def never(tmp_path: Path) -> Iterator[Path]:
    """A named pipe that is open for writing, but never written to."""
    path = tmp_path / "never"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    yield path
    os.close(descriptor)


def family(pipe: Pipe, never: Path, script: str = FAMILY) -> list[str | Path]:
    return ["sh", "-c", script, "sh", pipe.path, never]


def test_run_returns_output_and_status() -> None:
    done = run(["sh", "-c", "cat; echo oops >&2; exit 3"], input="hello", check=False)
    assert (done.status, done.stdout, done.stderr) == (3, "hello", "oops\n")
    assert done.argv[0] == "sh"
    assert done.seconds > 0


def test_command_error_has_command_status_and_stderr_tail() -> None:
    script = "for n in $(seq 50); do echo line $n >&2; done; exit 7"
    with pytest.raises(CommandError) as caught:
        run(["sh", "-c", script], hint="do this")
    error = caught.value
    assert (error.status, error.hint) == (7, "do this")
    assert "exited with status 7" in error.message
    assert error.stderr_tail.splitlines()[-1] == "line 50"
    assert len(error.stderr_tail.splitlines()) == STDERR_TAIL_LINES


def test_command_error_names_the_signal() -> None:
    with pytest.raises(CommandError, match="was ended by signal 9"):
        run(["sh", "-c", "kill -9 $$"])


def test_undecodable_output_is_replaced() -> None:
    assert run(["printf", "caf\\351"]).stdout == "caf\ufffd"


def test_programs_run_in_c_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert run(["sh", "-c", "echo $LC_ALL"]).stdout == "C.UTF-8\n"
    assert run(["sh", "-c", "echo $LC_ALL"], env={"LC_ALL": "C"}).stdout == "C\n"


def test_env_is_added_to_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    assert run(["sh", "-c", "echo $OURS$ADDED"], env={"ADDED": "2"}).stdout == "12\n"


def test_cwd_sets_the_working_folder(tmp_path: Path) -> None:
    assert run(["pwd", "-P"], cwd=tmp_path).stdout == f"{tmp_path.resolve()}\n"


@pytest.mark.parametrize(
    "start",
    [run, call, spawn, lambda argv: run_lines(argv, print)],
    ids=["run", "call", "spawn", "run_lines"],
)
def test_missing_program_is_named(start: Callable[[list[str]], object]) -> None:
    with pytest.raises(ConfigError, match="program not found: no-such-program") as caught:
        start(["no-such-program"])
    assert "./inv" in str(caught.value.hint)


def test_missing_working_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        run(["true"], cwd=tmp_path / "gone")


def test_timeout_ends_children(pipe: Pipe, never: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def communicate(
        process: subprocess.Popen[bytes], input: bytes | None = None, timeout: float | None = None
    ) -> tuple[bytes, bytes]:
        pipe.wait_for_writer()  # the program may take longer to begin than it has time
        monkeypatch.undo()
        return process.communicate(input, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    with pytest.raises(CommandTimeout, match="did not end within 1 s"):
        run(family(pipe, never), timeout_seconds=TIMEOUT_SECONDS)
    assert pipe.ended()


def test_interrupt_ends_children(pipe: Pipe, never: Path) -> None:
    # It gets its input only once `run` waits for it.
    script = FAMILY.replace("echo line", "read go; kill -INT $PPID")
    with pytest.raises(KeyboardInterrupt):
        run(family(pipe, never, script), input="go\n")
    assert pipe.ended()


def test_interrupt_between_lines_ends_children(pipe: Pipe, never: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_lines(family(pipe, never), lambda line: signal.raise_signal(signal.SIGINT))
    assert pipe.ended()


def test_exception_in_line_callback_ends_the_program(pipe: Pipe, never: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_lines(family(pipe, never), lambda line: print(1 / 0))
    assert pipe.ended()


def test_interrupt_of_call_ends_children(
    pipe: Pipe, never: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        pipe.wait_for_writer()
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(family(pipe, never))
    assert pipe.ended()


def test_program_that_ignores_sigterm_is_killed(pipe: Pipe, never: Path) -> None:
    process = spawn(family(pipe, never, f"trap '' TERM; {FAMILY}"), stdout=subprocess.DEVNULL)
    pipe.wait_for_writer()
    end_group(process, grace_seconds=0.1)
    assert process.returncode == -signal.SIGKILL
    assert pipe.ended()


def test_child_that_ignores_sigterm_is_killed_with_its_parent(pipe: Pipe, never: Path) -> None:
    script = 'exec 3>"$1"; (trap "" TERM; echo begun >&3; read line <"$2") & wait'
    process = spawn(family(pipe, never, script))
    try:
        pipe.wait_for_writer()
        end_group(process, grace_seconds=0.1)
        assert pipe.ended()
    finally:
        # Kill the process if our code has left it running.
        with pytest.raises(ProcessLookupError):
            while True:
                os.killpg(process.pid, signal.SIGKILL)


def test_end_group_waits_for_end_of_killed_process(pipe: Pipe, never: Path) -> None:
    """Without a pause for its end after SIGTERM, it gets SIGKILL, and ends a moment later."""
    process = spawn(family(pipe, never, f"trap '' TERM; {FAMILY}"), stdout=subprocess.DEVNULL)
    pipe.wait_for_writer()
    end_group(process, grace_seconds=0)
    assert process.returncode == -signal.SIGKILL


def test_end_group_of_ended_process_is_no_error() -> None:
    process = spawn(["true"])
    process.wait()
    end_group(process)
    assert process.returncode == 0


def test_run_lines_passes_each_line() -> None:
    seen: list[str] = []
    run_lines(["sh", "-c", "echo one; echo two >&2; printf three"], seen.append)
    assert seen == ["one", "two", "three"]


def test_run_lines_passes_lines_while_program_runs(tmp_path: Path) -> None:
    """The program waits until its first line was passed on."""
    answer = tmp_path / "answer"
    os.mkfifo(answer)
    seen: list[str] = []

    def on_line(line: str) -> None:
        seen.append(line)
        if line == "question":
            answer.write_text("seen\n")

    run_lines(["sh", "-c", 'echo question; cat "$1"', "sh", answer], on_line)
    assert seen == ["question", "seen"]


def test_noise_lines_are_passed_but_not_logged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    seen: list[str] = []
    script = "echo status:10; echo started; echo status:20; echo failed >&2; exit 2"
    with pytest.raises(CommandError) as caught:
        run_lines(["sh", "-c", script], seen.append, noise=("status:",), log_file=log)
    assert seen == ["status:10", "started", "status:20", "failed"]
    assert log.read_text() == "before\nstarted\nfailed\n"
    assert caught.value.stderr_tail == "started\nfailed"
    assert caught.value.status == 2


def test_run_lines_error_has_only_last_lines() -> None:
    with pytest.raises(CommandError) as caught:
        run_lines(["sh", "-c", "seq 1000; exit 1"], lambda line: None)
    assert caught.value.stderr_tail.splitlines() == [
        str(number) for number in range(1001 - STDERR_TAIL_LINES, 1001)
    ]


def test_call_uses_the_terminal_and_returns_status(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert call(["sh", "-c", "echo out; echo err >&2; exit 5"]) == 5
    assert capfd.readouterr() == ("out\n", "err\n")


def test_spawned_program_has_its_own_session() -> None:
    process = spawn(["cat"], stdin=subprocess.PIPE)
    try:
        assert os.getsid(process.pid) == process.pid
    finally:
        process.communicate()


def test_only_pass_fds_are_inherited(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as kept, (tmp_path / "b").open("w") as not_kept:
        os.set_inheritable(not_kept.fileno(), True)
        process = spawn(
            ["sh", "-c", "ls /proc/self/fd"], stdout=subprocess.PIPE, pass_fds=[kept.fileno()]
        )
        out, _ = process.communicate()
        numbers = out.decode().split()
        assert str(kept.fileno()) in numbers
        assert str(not_kept.fileno()) not in numbers


NOISE_BYTES = 1_000_000
# Far more than a pipe holds, before, between and after the lines that are read.
NOISY = f"""
import sys
noise = lambda: print("x" * {NOISE_BYTES}, file=sys.stderr, flush=True)
noise(); print("first", flush=True)
word = sys.stdin.readline().strip()
noise(); print(word, flush=True); noise()
print("the last words", file=sys.stderr, flush=True)
"""


def test_line_process_is_not_blocked_by_stderr() -> None:
    process = LineProcess([sys.executable, "-c", NOISY])
    try:
        assert process.first_line(60) == b"first\n"
        process.send("go")
        assert list(process.lines()) == [b"go\n"]
        said = process.last_words()
        assert said.splitlines()[-1] == "the last words"
        assert len(said) < NOISE_BYTES / 10
    finally:
        process.end()


def test_first_line_of_silent_line_process_is_empty(never: Path) -> None:
    process = LineProcess(["cat", never])
    try:
        assert process.first_line(0.05) == b""
        assert process.is_running
    finally:
        process.end()
    assert not process.is_running


def test_send_to_ended_line_process_is_ignored() -> None:
    process = LineProcess(["sh", "-c", "echo no room >&2; exit 3"])
    assert list(process.lines()) == []
    process.send("go")
    assert process.last_words() == "no room"
    process.end()


def test_last_words_are_complete_before_their_thread_has_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: waiting.append(thread))
    process = LineProcess(["sh", "-c", "seq 2000 >&2; echo no room >&2; exit 3"])
    assert list(process.lines()) == []
    said = process.last_words()
    assert said.splitlines()[-2:] == ["2000", "no room"]
    monkeypatch.undo()
    (reader,) = waiting
    reader.start()
    reader.join()
    assert process.last_words() == said, "nothing is read twice"
    process.end()


def test_last_words_do_not_wait_for_other_writers_of_the_pipe(
    pipe: Pipe, never: Path, tmp_path: Path
) -> None:
    # A child in a session of its own, as the master of shared SSH connections is one.
    stranger = 'setsid sh -c \'exec 3>"$1"; echo begun >&3; cat "$2"\' sh "$1" "$2" &'
    process = LineProcess(["sh", "-c", f"echo failed >&2; {stranger}", "sh", pipe.path, never])
    pipe.wait_for_writer()
    process.end()
    assert process.last_words() == "failed"
    never.write_text("end\n")


def test_end_of_line_process_ends_children(pipe: Pipe, never: Path) -> None:
    process = LineProcess(family(pipe, never))
    pipe.wait_for_writer()
    process.end()
    assert pipe.ended()


# Starts `family` (argv[1:]) by the function $KIND, prints `started`, and waits for its kill.
PARENT = """
import os, sys, threading, time
from polydev.processes import call, run, run_lines, spawn
kind, words = os.environ["KIND"], sys.argv[1:]

def start(function):
    threading.Thread(target=function, daemon=True).start()

if kind == "run":
    run(words)
elif kind == "run_lines":
    run_lines(words, print)
elif kind == "call":
    call(words)
elif kind == "nested":
    code = "import sys; from polydev.processes import run; run(sys.argv[1:])"
    program = [sys.executable, "-c", code]
    run([*program, *words])
elif kind == "thread":
    thread = threading.Thread(target=lambda: spawn(words))
    thread.start()
    thread.join()
elif kind == "stays":
    spawn(words, stays=True, stdout=open(os.devnull, 'wb'))
else:
    spawn(words)
print("started", flush=True)
sys.stdin.read()
"""
AWAY = f"setsid sh -c '{FAMILY}' sh \"$@\" & wait"
KINDS = ["run", "run_lines", "call", "nested", "spawn", "thread"]


def parent_of(kind: str, words: list[str | Path]) -> subprocess.Popen[bytes]:
    """Start a Python process that runs this family by a function of `polydev.processes`."""
    return spawn(
        [sys.executable, "-c", PARENT, *words],
        env={"KIND": kind, "PYTHONPATH": SOURCE},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("script", [FAMILY, AWAY], ids=["in its session", "in another session"])
@pytest.mark.parametrize("kind", KINDS)
def test_children_end_with_killed_parent(pipe: Pipe, never: Path, kind: str, script: str) -> None:
    parent = parent_of(kind, family(pipe, never, script))
    pipe.wait_for_writer()
    kill(parent)
    assert pipe.ended()


@pytest.mark.parametrize("kind", ["spawn", "thread"])
def test_process_survives_the_thread_that_started_it(pipe: Pipe, never: Path, kind: str) -> None:
    parent = parent_of(kind, family(pipe, never))
    pipe.wait_for_writer()
    assert parent.stdout is not None
    assert b"started\n" in iter(parent.stdout.readline, b"")
    assert not pipe.ended(within_seconds=0.2)
    kill(parent)
    assert pipe.ended()


def test_children_end_when_parent_exits(pipe: Pipe, never: Path) -> None:
    parent = parent_of("spawn", family(pipe, never))
    pipe.wait_for_writer()
    parent.communicate(b"")
    assert parent.returncode == 0
    assert pipe.ended()


def test_detached_process_survives_its_parent(pipe: Pipe, never: Path, tmp_path: Path) -> None:
    other = Pipe(tmp_path / "other")
    words = family(pipe, never)
    parent = parent_of("stays", words)
    pipe.wait_for_writer()
    assert parent.stdout is not None
    assert b"started\n" in iter(parent.stdout.readline, b"")
    kill(parent)
    ending = parent_of("spawn", family(other, never))
    other.wait_for_writer()
    kill(ending)
    assert other.ended()
    # The second guard has finished, so the first one, which began earlier, has finished too.
    assert not pipe.ended(within_seconds=0)
    os.close(other.descriptor)


def test_orphaned_process_is_found(pipe: Pipe, never: Path) -> None:
    assert [each for each in orphans() if str(never) in each.argv] == []
    dead = spawn(["true"])
    owner = f"{dead.pid}.1.none"
    dead.wait()
    words = family(pipe, never, 'exec 3>"$1"; echo begun >&3; read -r line <"$2"')
    process = spawn(["env", f"{OWNER}={owner}", *words])
    try:
        pipe.wait_for_writer()
        (found,) = [each for each in orphans() if str(never) in each.argv]
        assert found.pid == process.pid
        assert str(found).startswith(f"process {process.pid} (sh -c ")
    finally:
        end_group(process)
