"""The only module that starts processes.

`run` waits for one and returns its output; `spawn` starts one in the background; `LineProcess`
exchanges lines with one. Every process gets a session of its own, so that a timeout or an
interrupt ends all of its children too. `become` starts none: it replaces this process.
"""

from __future__ import annotations

import logging
import os
import secrets
import select
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from polydev.errors import STDERR_TAIL_LINES, CommandError, CommandTimeout, ConfigError

log = logging.getLogger(__name__)

Argument = str | Path
Process = subprocess.Popen[bytes]
PIPE = subprocess.PIPE

# How much of a LineProcess's standard error is kept.
STDERR_TAIL_BYTES = 16 * 1024
# As much as a pipe holds, so that one read takes all that a process has left there.
STDERR_CHUNK_BYTES = 64 * 1024
# SIGKILL ends a process once it gets a CPU, which may take seconds on a busy machine.
KILLED_SECONDS = 60.0

OWNER = "POLYDEV_OWNER"
# The guard kills the processes that carry this process's mark, once this process has ended. Its
# pipe closes when all writers have ended: this process, and forked children without the mark yet,
# since they do not run their program yet. It tries again because killed processes take a moment to
# disappear. It ends after several looks without one, since a process that begins to run a program
# has no mark for a moment. It is nobody's child, so that a program that replaces this process need
# not reap it.
_GUARD = """
exec 3<&0
trap '' HUP INT QUIT TERM
(
  looks=0
  read -r never
  for attempt in $(seq 100); do
    found=$(grep -lzsxF "$1" /proc/[0-9]*/environ) || :
    for file in $found; do
      pid=${file#/proc/}
      kill -KILL "${pid%/*}"
    done
    if [ -n "$found" ]; then looks=0; else looks=$((looks + 1)); fi
    [ "$looks" -lt 4 ] || exit 0
    sleep "0.$((looks + 1))"
  done
) <&3 &
"""

# Output of programs is parsed, so it must not depend on the machine's language.
PLAIN_ENGLISH = {"LC_ALL": "C.UTF-8"}
# Processes that some thread waits for; `end_waited_for` ends them.
_waited_for: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class _Guard:
    """This process's guard: it acts when `pipe` is closed."""

    pid: int
    owner: str
    pipe: int


_guard: _Guard | None = None
_guard_lock = threading.Lock()


@dataclass(frozen=True)
class Orphan:
    """A process that outlived the process that started it."""

    pid: int
    argv: tuple[str, ...]

    def __str__(self) -> str:
        return f"process {self.pid} ({shlex.join(self.argv)[:80]})"


@dataclass(frozen=True)
class Completed:
    """Result of a process that ended; `seconds` is wall-clock time."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    seconds: float


def run(
    argv: Sequence[Argument],
    *,
    timeout_seconds: float | None = None,
    input: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    inherit: bool = True,
    check: bool = True,
    hint: str | None = None,
) -> Completed:
    """Run a program to its end. `env` adds to this process's environment, or replaces it.

    Raises CommandError (status other than 0, unless `check` is false), CommandTimeout, or
    ConfigError when the program is not installed.
    """
    words = [str(word) for word in argv]
    log.debug("run %s", shlex.join(words))
    started = time.monotonic()
    process = spawn(
        words,
        cwd=cwd,
        env=env,
        inherit=inherit,
        stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _waited_for.add(process)
    try:
        out, err = process.communicate(
            None if input is None else input.encode(), timeout=timeout_seconds
        )
    except subprocess.TimeoutExpired:
        end_group(process)
        _, err = process.communicate()
        raise CommandTimeout(words, timeout_seconds or 0, err.decode(errors="replace")) from None
    except BaseException:
        end_group(process)
        process.communicate()
        raise
    finally:
        _waited_for.discard(process)
    stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
    if check and process.returncode != 0:
        raise CommandError(words, process.returncode, stderr or stdout, hint)
    return Completed(tuple(words), process.returncode, stdout, stderr, time.monotonic() - started)


def run_lines(
    argv: Sequence[Argument],
    on_line: Callable[[str], None],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    inherit: bool = True,
    noise: tuple[str, ...] = (),
    log_file: Path | None = None,
) -> None:
    """Run a program to its end and pass each line of its output to `on_line` as it comes.

    Lines that start with one of `noise` are left out of the error and of `log_file`, which
    gets all others. Raises CommandError with the last lines, or ConfigError when it is not
    installed.
    """
    words = [str(word) for word in argv]
    log.debug("run %s", shlex.join(words))
    process = spawn(
        words,
        cwd=cwd,
        env=env,
        inherit=inherit,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    tail: deque[str] = deque(maxlen=STDERR_TAIL_LINES)
    _waited_for.add(process)
    try:
        assert process.stdout is not None
        with log_file.open("a") if log_file else nullcontext() as kept:
            for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                on_line(line)
                if not (noise and line.startswith(noise)):
                    tail.append(line)
                    if kept:
                        kept.write(line + "\n")
        status = process.wait()
    except BaseException:
        end_group(process)
        raise
    finally:
        _waited_for.discard(process)
    if status != 0:
        raise CommandError(words, status, "\n".join(tail))


def call(argv: Sequence[Argument], *, cwd: Path | None = None) -> int:
    """Run a program that uses the terminal itself; return its exit status."""
    process = spawn(argv, cwd=cwd)
    try:
        return process.wait()
    except BaseException:
        end_group(process)
        raise


def spawn(
    argv: Sequence[Argument],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    inherit: bool = True,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    stays: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own and return at once.

    It ends with this process, unless it `stays`: then the caller records it, to end it later.
    Without `inherit` its environment is `env` and nothing else.
    """
    words = [str(word) for word in argv]
    environment = {**(os.environ if inherit else {}), **PLAIN_ENGLISH, **(env or {})}
    if stays:
        environment.pop(OWNER, None)
    else:
        environment[OWNER] = _guarded_owner()
    try:
        return subprocess.Popen(
            words,
            cwd=cwd,
            env=environment,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        if cwd is not None and not cwd.is_dir():
            raise ConfigError(f"no such folder: {cwd}") from error
        raise ConfigError(
            f"program not found: {words[0]}", "run ./inv once: it installs what is missing"
        ) from error


class LineProcess:
    """A process that gets lines on its standard input and answers on its standard output.

    A thread reads its standard error and keeps the end of it: a pipe holds 64 KiB, and a process
    that writes more to a pipe that nobody reads blocks for ever.
    """

    def __init__(self, argv: Sequence[Argument], *, cwd: Path | None = None) -> None:
        """Start it. Raises ConfigError when it is not installed."""
        self._process = spawn(argv, cwd=cwd, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        pipe, self._process.stderr = self._process.stderr, None  # the thread closes it
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
        self._stderr, self._stderr_tail, self._stderr_lock = pipe, b"", threading.Lock()
        threading.Thread(target=self._read_stderr, daemon=True).start()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, line: str) -> None:
        """Write one line; ignore that the process no longer reads, since it says why elsewhere."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def first_line(self, timeout_seconds: float) -> bytes:
        """Return the first line; b"" if none begins in time."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            return self._process.stdout.readline() if selector.select(timeout_seconds) else b""

    def lines(self) -> Iterator[bytes]:
        """Yield each further line as it comes, until the process closes its standard output."""
        assert self._process.stdout is not None
        # Not the pipe itself: it would be closed with this iterator.
        yield from iter(self._process.stdout.readline, b"")

    def last_words(self) -> str:
        """Return the end of its standard error; call this once it has ended.

        A child of it may keep the pipe open, and the thread may not have read all of it yet.
        """
        with self._stderr_lock:
            if not self._stderr.closed:
                self._keep_stderr()
            return self._stderr_tail.decode(errors="replace").strip()

    def end_group(self) -> None:
        """End it and all of its children; its output can still be read."""
        end_group(self._process)

    def end(self, seconds: float = 0) -> None:
        """Wait so long for it to end by itself, then end it and close its pipes."""
        wait_or_end(self._process, seconds)

    def _read_stderr(self) -> None:
        waiting = select.poll()
        waiting.register(self._stderr, select.POLLIN)
        while not self._stderr.closed:
            waiting.poll()
            with self._stderr_lock:
                if not self._keep_stderr():
                    self._stderr.close()

    def _keep_stderr(self) -> bool:
        """Read what is in the pipe, without waiting; return False at its end."""
        try:
            chunk = os.read(self._stderr.fileno(), STDERR_CHUNK_BYTES)
        except BlockingIOError:
            return True
        self._stderr_tail = (self._stderr_tail + chunk)[-STDERR_TAIL_BYTES:]
        return bool(chunk)


def _guarded_owner() -> str:
    """Return the mark of this process as an owner; start its guard first if there is none."""
    global _guard
    with _guard_lock:
        if _guard is None or _guard.pid != os.getpid():
            _guard = _start_guard()
        return _guard.owner


def _start_guard() -> _Guard:
    owner = f"{os.getpid()}.{_start_ticks(os.getpid())}.{secrets.token_hex(4)}"
    reading, writing = os.pipe()
    try:
        # Without the variables of this process: the guard of its own owner must not end it.
        subprocess.run(
            ["/bin/sh", "-c", _GUARD, "guard", f"{OWNER}={owner}"],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath},
            cwd="/",
            start_new_session=True,
            check=True,
        )
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return _Guard(os.getpid(), owner, writing)


def orphans() -> list[Orphan]:
    """Return the processes on this machine that carry the mark of an owner that has ended.

    There are none unless the owner's guard was killed too. Those in containers do not count.
    """
    found = []
    ours = os.readlink("/proc/self/ns/pid")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended just now, or another user's
            owner = _owner_in((folder / "environ").read_bytes())
            same_namespace = os.readlink(folder / "ns/pid") == ours
            if owner and same_namespace and not _is_alive(owner):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                found.append(Orphan(int(folder.name), tuple(words[:-1])))
    return sorted(found, key=lambda orphan: orphan.pid)


def _owner_in(environment: bytes) -> str | None:
    mark = f"{OWNER}=".encode()
    marked = [each for each in environment.split(b"\0") if each.startswith(mark)]
    return marked[0].removeprefix(mark).decode(errors="replace") if marked else None


def _is_alive(owner: str) -> bool:
    pid, _, rest = owner.partition(".")
    try:
        return _start_ticks(int(pid)) == int(rest.partition(".")[0])
    except (OSError, ValueError, IndexError):
        return False


def _start_ticks(pid: int) -> int:
    """Return when a process began, in ticks since boot; PID and ticks together are unique."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return int(stat.rpartition(")")[2].split()[19])


def become(argv: Sequence[Argument], *, output: IO[bytes], pass_fds: Sequence[int]) -> NoReturn:
    """Replace this process by a program; only these descriptors stay open in it."""
    words = [str(word) for word in argv]
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    for descriptor in pass_fds:
        os.set_inheritable(descriptor, True)
    _execute(words)


def hand_over(argv: Sequence[Argument]) -> NoReturn:
    """Replace this process by a program, which gets its terminal and standard input."""
    sys.stdout.flush()
    _execute([str(word) for word in argv])


def _execute(words: list[str]) -> NoReturn:
    try:
        os.execvp(words[0], words)  # noqa: S606  (words, not a shell's line)
    except FileNotFoundError as error:
        raise ConfigError(f"program not found: {words[0]}") from error


def leave_behind(work: Callable[[], None]) -> None:
    """Run `work` in a detached process: no child of this process or of what replaces it."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:
            work()
    except Exception:
        log.exception("detached work failed")
    finally:
        os._exit(0)


def wait_or_end(process: Process, seconds: float) -> None:
    """Wait so long for a process made by `spawn` to end by itself; then end it."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    end_group(process)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):  # nobody reads the rest any more
                pipe.close()


def end_waited_for() -> None:
    """End every process that `run` or `run_lines` waits for, in whatever thread."""
    for process in list(_waited_for):
        end_group(process, grace_seconds=0.5)


def end_group(process: subprocess.Popen[bytes], grace_seconds: float = 5.0) -> None:
    """End a process made by `spawn` and all of its children: TERM, then KILL."""
    # KILL follows even if the first process ended: its children may not have.
    for sent, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, KILLED_SECONDS)):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
