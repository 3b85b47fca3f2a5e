"""Try system calls that no VM's process may make: each one directly, and by io_uring.

A program by itself, run where it is to be confined, with a /tmp of its own: it prints as JSON what
became of each call. For x86-64 only, as our hosts are.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

AT_FDCWD = -100
CLONE_NEWUSER = 0x10000000
CLONE_ARGS_BYTES = 88
READ_IMPLIES_EXEC = 0x0400000

IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427
# Calls with arguments that no kernel takes: an error other than EPERM says that it was reached.
CALLS_WITH_BAD_ARGUMENTS = {
    "ptrace": 101,
    "pivot_root": 155,
    "chroot": 161,
    "acct": 163,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "reboot": 169,
    "sethostname": 170,
    "iopl": 172,
    "init_module": 175,
    "quotactl": 179,
    "io_setup": 206,
    "lookup_dcookie": 212,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "finit_module": 313,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": IO_URING_SETUP,
    "io_uring_enter": IO_URING_ENTER,
    "io_uring_register": IO_URING_REGISTER,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
}
MKDIR, MKDIRAT, SYMLINK, SYMLINKAT = 83, 258, 88, 266
LINK, LINKAT, MKNOD, MKNODAT = 86, 265, 133, 259
SOCKET, CLONE3, UNSHARE, PERSONALITY = 41, 435, 272, 135
CHMOD, FCHMODAT, OPENAT2, FCHMODAT2 = 90, 268, 437, 452
FAMILIES = ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG")
RING_MKDIRAT, RING_SYMLINKAT, RING_LINKAT, RING_SOCKET = 37, 38, 39, 45

_libc = ctypes.CDLL(None, use_errno=True)


def call(number: int, *words: int | bytes) -> int:
    """The call's result. Raises OSError."""
    given = [each if isinstance(each, bytes) else ctypes.c_long(each) for each in words]
    result = int(_libc.syscall(ctypes.c_long(number), *given))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def outcome(attempt: Callable[[], object]) -> str:
    """`done`, or the name of the error."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


class Ring:
    """An io_uring that takes one request after another. Raises OSError where there is none."""

    def __init__(self) -> None:
        params = ctypes.create_string_buffer(120)
        self._descriptor = call(IO_URING_SETUP, 4, ctypes.addressof(params))
        numbers = struct.unpack("30I", params.raw)
        self._tail_at, self._array_at = numbers[11], numbers[16]
        self._completed_at, self._answers_at = numbers[20], numbers[25]
        entries, answers = numbers[0], numbers[1]
        size = max(self._array_at + 4 * entries, self._answers_at + 16 * answers)
        self._rings = mmap.mmap(self._descriptor, size, offset=0)
        self._requests = mmap.mmap(self._descriptor, 64 * entries, offset=0x10000000)
        self._made, self._entries, self._answers = 0, entries, answers

    def ask(self, code: int, descriptor: int, where: int, address: int, length: int) -> None:
        """Raises OSError as the call itself would."""
        place = self._made % self._entries
        request = struct.pack("BBHiQQI", code, 0, 0, descriptor, where, address, length)
        self._requests[64 * place : 64 * place + 64] = request.ljust(64, b"\0")
        struct.pack_into("I", self._rings, self._array_at + 4 * place, place)
        struct.pack_into("I", self._rings, self._tail_at, self._made + 1)
        call(IO_URING_ENTER, self._descriptor, 1, 1, 1, 0, 0)
        answer = self._answers_at + 16 * (self._made % self._answers)
        result = struct.unpack_from("i", self._rings, answer + 8)[0]
        self._made += 1
        struct.pack_into("I", self._rings, self._completed_at, self._made)
        if result < 0:
            raise OSError(-result, os.strerror(-result))


def directly() -> dict[str, str]:
    """Return the result of each call, tried in the working directory."""
    Path("file").touch()
    clone = ctypes.create_string_buffer(CLONE_ARGS_BYTES)
    struct.pack_into("Q", clone, 0, CLONE_NEWUSER)
    how = ctypes.create_string_buffer(struct.pack("QQQ", os.O_CREAT | os.O_WRONLY, 0o4755, 0), 24)
    fifo = 0o010600
    tries: dict[str, tuple[Any, ...]] = {
        "mkdir": (MKDIR, b"mkdir", 0o700),
        "mkdirat": (MKDIRAT, AT_FDCWD, b"mkdirat", 0o700),
        "symlink": (SYMLINK, b"/", b"symlink"),
        "symlinkat": (SYMLINKAT, b"/", AT_FDCWD, b"symlinkat"),
        "link": (LINK, b"file", b"link"),
        "linkat": (LINKAT, AT_FDCWD, b"file", AT_FDCWD, b"linkat", 0),
        "mknod": (MKNOD, b"mknod", fifo, 0),
        "mknodat": (MKNODAT, AT_FDCWD, b"mknodat", fifo, 0),
        "chmod(S_ISUID)": (CHMOD, b"file", 0o4755),
        "fchmodat(S_ISUID)": (FCHMODAT, AT_FDCWD, b"file", 0o4755),
        "fchmodat2(S_ISUID)": (FCHMODAT2, AT_FDCWD, b"file", 0o4755, 0),
        "openat2(S_ISUID)": (OPENAT2, AT_FDCWD, b"suid", ctypes.addressof(how), len(how)),
        "personality": (PERSONALITY, READ_IMPLIES_EXEC),
        **{
            f"socket({family})": (SOCKET, getattr(socket, family), socket.SOCK_STREAM, 0)
            for family in FAMILIES
        },
        **{name: (number, *[-1] * 6) for name, number in CALLS_WITH_BAD_ARGUMENTS.items()},
        "unshare(CLONE_NEWUSER)": (UNSHARE, CLONE_NEWUSER),
    }
    found = {name: outcome(partial(call, *words)) for name, words in tries.items()}
    found["clone3(CLONE_NEWUSER)"] = outcome(lambda: _clone(clone))
    return found


def _clone(args: ctypes.Array[ctypes.c_char]) -> None:
    if call(CLONE3, ctypes.addressof(args), len(args)) == 0:
        os._exit(0)


def by_io_uring() -> dict[str, str]:
    """The same by a ring; for each the ring's own error where there is none."""
    names = {text: ctypes.create_string_buffer(text) for text in (b"/", b"file", b"m", b"s", b"l")}
    at = {text: ctypes.addressof(buffer) for text, buffer in names.items()}
    try:
        ring = Ring()
    except OSError as error:
        refused = errno.errorcode[error.errno or 0]
        return dict.fromkeys(("mkdirat", "symlinkat", "linkat", "socket(AF_INET)"), refused)
    here = AT_FDCWD & 0xFFFFFFFF
    return {
        "mkdirat": outcome(lambda: ring.ask(RING_MKDIRAT, AT_FDCWD, 0, at[b"m"], 0o700)),
        "symlinkat": outcome(lambda: ring.ask(RING_SYMLINKAT, AT_FDCWD, at[b"s"], at[b"/"], 0)),
        "linkat": outcome(lambda: ring.ask(RING_LINKAT, AT_FDCWD, at[b"l"], at[b"file"], here)),
        "socket(AF_INET)": outcome(
            lambda: ring.ask(RING_SOCKET, socket.AF_INET, socket.SOCK_STREAM, 0, 0)
        ),
    }


if __name__ == "__main__":
    os.chdir("/tmp")
    print(json.dumps({"directly": directly(), "by io_uring": by_io_uring()}))
