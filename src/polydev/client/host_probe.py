"""Print facts of a host as one JSON object. It is sent to the host and run there by `python3 -`.

It uses the standard library only and changes nothing; unknown facts are null. `host_checks.py`
judges them. It runs on Python 3.7 too, so that the doctor can report that a version is too old.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TOOL = "/opt/polydev-ai/bin/polydev-host"
HOST = "/etc/polydev/host.json"
CONFIG = "/etc/master-controller/config.yaml"
DNS_CONFIG = "/etc/polydev/dns.conf"
ACCELERATOR = "/run/polydev/accelerator.json"
STORE = "/var/lib/firecracker/snapshots/base"
GOLDEN = STORE + "/golden-rootfs.ext4"
FOLDERS = ("/", STORE, "/var/lib/microvm", "/var/lib/master-controller")
UNITS = (
    *("master-controller.service", "polkit.service", "polydev-accelerator.service"),
    *("polydev-templates.socket", "polydev-template.service"),
)
QEMU = "qemu-system-x86_64"
START_UNIT = "org.freedesktop.systemd1.manage-units"
# Units that the controller may start, and must not touch.
ASKED = {"vm": "microvm@2.service", "other": "ssh.service"}
LOOKED_AT = ("accounts", "database", "overrides", "permissions", "polkit", "release", "settings")
ASKED_NAME = "debian.org"
# A busy host takes its time.
COMMAND_SECONDS = 60
# Longer than the controller takes to say that its database does not answer.
ANSWER_SECONDS = 10


def facts() -> dict[str, Any]:
    started = time.time()
    host = _json_file(HOST)
    found = {
        "os": _os(),
        "kernel": os.uname().release,
        "architecture": os.uname().machine,
        "python": list(sys.version_info[:3]),
        "host": host,
        "config": _text(CONFIG),
        "memoryBytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "cpus": os.cpu_count(),
        "disks": {folder: _disk(folder) for folder in FOLDERS},
        "qemu": _said([QEMU, "--version"]),
        "accelerator": _json_file(ACCELERATOR),
        "golden": _golden(),
        "health": _health() if Path(TOOL).exists() else None,
        "look": _look(host),
        "units": {unit: _said(["systemctl", "is-active", unit]) for unit in UNITS},
        "failedVms": _failed_vms(),
        "templates": _templates(),
        "polkit": {name: _may(unit) for name, unit in ASKED.items()},
        "polkitVersion": _said(["pkcheck", "--version"]),
        "controller": _controller(host or {}),
        "upstreams": {address: _names(address) for address in _upstreams()},
    }
    # The operator's side compares these two with its own clock around the whole call.
    return {"startedAt": started, **found, "endedAt": time.time()}


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return None


def _json_file(path: str) -> dict[str, Any] | None:
    try:
        found = json.loads(_text(path) or "null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _os() -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text("/etc/os-release") or "", re.MULTILINE)
    return found.group(1) if found else "unknown"


def _disk(folder: str) -> dict[str, int] | None:
    try:
        numbers = os.statvfs(folder)
    except OSError:
        return None
    return {
        "size": numbers.f_blocks * numbers.f_frsize,
        "free": numbers.f_bavail * numbers.f_frsize,
    }


def _run(argv: list[str], text: str = "") -> tuple[int, str] | None:
    try:
        done = subprocess.run(
            argv,
            input=text.encode(),
            env=dict(os.environ, LC_ALL="C.UTF-8"),
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode, done.stdout.decode(errors="replace").strip()


def _said(argv: list[str]) -> str | None:
    done = _run(argv)
    return done[1] if done else None


def _golden() -> dict[str, Any] | None:
    link = Path(GOLDEN)
    if not link.exists():
        return None
    folder = link.resolve().parent
    record = _json_file(str(folder / "record.json")) or {}
    return {"digest": folder.name, "createdAt": record.get("createdAt")}


def _health() -> dict[str, Any] | None:
    try:
        found = json.loads(_said([TOOL, "health", "--seconds", str(ANSWER_SECONDS)]) or "null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _look(host: dict[str, Any] | None) -> dict[str, Any] | None:
    """Ask the host tool for changes by hand; None if it is of a release that cannot answer."""
    if host is None or not Path(TOOL).exists():
        return None
    done = _run([TOOL, "look"], json.dumps({"parts": LOOKED_AT, "host": host}))
    try:
        found = json.loads(done[1] if done else "null")
    except ValueError:
        return None
    return found if isinstance(found, dict) and "error" not in found else None


def _failed_vms() -> list[str]:
    words = ["systemctl", "list-units", "--all", "--state=failed", "--plain", "--no-legend"]
    return [line.split()[0] for line in (_said([*words, "microvm@*"]) or "").splitlines()]


def _templates() -> dict[str, Any] | None:
    """The controller's report on templates; None from a release that has none."""
    if not Path(TOOL).exists():
        return None
    try:
        found = json.loads(_said([TOOL, "controller", "templates", "report"]) or "null")
    except ValueError:
        return None
    return found if isinstance(found, dict) and "serving" in found else None


def _may(unit: str) -> bool | None:
    """Whether polkit lets the running controller start that unit; None if it cannot be asked."""
    process = _said(["systemctl", "show", "-P", "MainPID", "master-controller.service"])
    if not process or process == "0":
        return None
    words = ["pkcheck", "--action-id", START_UNIT, "--process", process]
    done = _run([*words, "--detail", "unit", unit, "--detail", "verb", "start"])
    return None if done is None else done[0] == 0


def _controller(host: dict[str, Any]) -> dict[str, Any] | None:
    """The controller's own words about its health."""
    if "controllerPort" not in host:
        return None
    name = str(host.get("controllerAddress", "127.0.0.1"))
    address = f"{f'[{name}]' if ':' in name else name}:{host['controllerPort']}"
    scheme = "https" if host.get("controllerCertificate") else "http"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # its certificate has its own name, not this address
    context.verify_mode = ssl.CERT_NONE
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(f"{scheme}://{address}/api/auth/health", timeout=ANSWER_SECONDS) as answer:
            body = answer.read(65536)
    except urllib.request.HTTPError as error:  # 503 has the same body
        body = error.read(65536)
    except OSError as error:
        return {"status": f"no answer at {address}: {error}"}
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"status": f"no health report at {address}"}


def _upstreams() -> list[str]:
    found = re.findall(r"^server=([0-9.]+)$", _text(DNS_CONFIG) or "", re.MULTILINE)
    return [str(address) for address in found]


def _names(address: str) -> str:
    """`ok`, how it answers if it does not help, or why there is no answer (RFC 1035)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in ASKED_NAME.split("."))
    header = struct.pack(">HHHHHH", 1, 0x0100, 1, 0, 0, 0)
    question = header + labels + b"\0" + struct.pack(">HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(ANSWER_SECONDS)
        try:
            client.sendto(question, (address, 53))
            answer = client.recv(512)
        except OSError as error:
            return str(error) or "no answer"
    code = answer[3] & 0x0F if len(answer) > len(header) else None
    return "ok" if code == 0 else f"answers, but not for {ASKED_NAME} (code {code})"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()) + "\n")
