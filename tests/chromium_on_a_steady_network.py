#!/usr/bin/env python3
"""Become Chromium that does not notice network interfaces of this machine that come and go.

Chromium ends its requests when the network changes, and labs of other tests change it all the time.
It hears of that from a netlink socket. A seccomp filter refuses such sockets, and without one
Chromium takes the network to be always the same. On x86-64 only, as our hosts are; elsewhere it is
Chromium as usual.
"""

import ctypes
import os
import struct
import sys

CHROMIUM = "/usr/bin/chromium"
X86_64, SOCKET_CALL = 0xC000003E, 41
AF_NETLINK, EAFNOSUPPORT = 16, 97
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
# Operation, instructions to skip if equal and if not, value or offset.
FILTER = (
    (LOAD, 0, 0, 4),  # the architecture
    (JUMP_IF_EQUAL, 0, 5, X86_64),
    (LOAD, 0, 0, 0),  # the number of the system call
    (JUMP_IF_EQUAL, 0, 3, SOCKET_CALL),
    (LOAD, 0, 0, 16),  # its first argument
    (JUMP_IF_EQUAL, 0, 1, AF_NETLINK),
    (RETURN, 0, 0, FAIL | EAFNOSUPPORT),
    (RETURN, 0, 0, ALLOW),
)
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
# Pages of the browser's own, and renderers, that each window and tab starts in reserve.
IDLE_WORK = (
    "PreloadTopChromeWebUI,WebUIOmniboxPopup,WebUIOmniboxFullPopup,WebUIOmniboxAimPopup,"
    "SpareRendererForSitePerProcess"
)


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_netlink() -> None:
    """Refuse netlink sockets to this process and its children, where the kernel has filters."""
    code = b"".join(struct.pack("HBBI", *each) for each in FILTER)
    program = Program(len(FILTER), code)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def without_idle_work(option: str) -> str:
    """Add to the features that are switched off: Chromium takes the last list of them only."""
    return f"{option},{IDLE_WORK}" if option.startswith("--disable-features=") else option


if __name__ == "__main__":
    refuse_netlink()
    os.execv(CHROMIUM, [CHROMIUM, *map(without_idle_work, sys.argv[1:])])
