"""The contents of a quick VM: its initrd, file by file, and its kernel command line. Pure.

The initrd stays the root. Its init is a script for busybox, whose `nc` starts a script for
each connection; all they know, they have from the kernel's command line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from polydev import __version__
from polydev.agent.reply_types import ComponentState, HealthReply
from polydev.host_layout import AGENT_PORT, GUEST_ADDRESS, GUEST_GATEWAY, NOVNC_PORT, VNC_PORT

# The number that a variant goes by where it is given none.
VARIANTS = {"healthy": 0, "silent": 0, "panic": 0, "deaf": 0, "sick": 3, "slow": 3}

# Without ACPI and APIC the kernel neither reads tables nor waits for timers to be calibrated:
# a fifth of the boot. It uses one CPU then, however many there are.
KERNEL_WORDS = (
    *("console=ttyS0", "loglevel=6", "panic=-1", "net.ifnames=0", "ipv6.disable=1"),
    *("acpi=off", "nolapic", "pci=nomsi", "tsc=reliable", "rodata=off"),
    *("mitigations=off", "audit=0", "apparmor=0", "cryptomgr.notests", "nowatchdog"),
    "random.trust_cpu=on",
)

INIT = """\
#!/bin/busybox sh
# Busybox finds itself, and so its other commands, through /proc.
/bin/busybox mount -t proc proc /proc
echo "Welcome to the quick VM!"
export KIND= NUMBER= VM=null SESSION=null IMAGE=null BOOT
read -r words </proc/cmdline
for word in $words; do
    value=${word#*=}
    case $word in
    quick=*) KIND=${value%%:*} NUMBER=${value##*:} ;;
    polydev.vm=?*) VM="\\"$value\\"" ;;
    polydev.session=?*) SESSION="\\"$value\\"" ;;
    polydev.image=?*) IMAGE="\\"$value\\"" ;;
    esac
done
read -r BOOT </proc/sys/kernel/random/boot_id

pause() { if [ $KIND = slow ]; then sleep $NUMBER; fi; }
# nc takes as many connections that wait as it is told times to listen.
serve() { port=$1; shift; nc -llllllllllllllllllllllllllllllll -p $port -e "$@" & }
listening() {
    while :; do
        while read -r _ local _ state _; do
            case "$local $state" in *":$1 0A") return ;; esac
        done </proc/net/tcp
        usleep 5000
    done
}

case $KIND in
panic) exit 1 ;;
silent) exec sleep 1000000000 ;;
esac
for module in @MODULES@; do insmod /$module; done
pause
ifconfig eth0 @ADDRESS@ netmask 255.255.255.252
route add default gw @GATEWAY@
echo "[  OK  ] Reached target network.target - Network."
pause
serve @VNC@ /greeting
serve @NOVNC@ /bin/busybox cat
listening @VNC_HEX@
listening @NOVNC_HEX@
echo "[  OK  ] Started polydev-vnc.service - VNC."
echo "[  OK  ] Reached target multi-user.target - Multi-User System."
pause
if [ $KIND = deaf ]; then
    serve @AGENT@ /silence
    wait
fi
serve @AGENT@ /answer
listening @AGENT_HEX@
read -r seconds _ </proc/uptime
echo "polydev: ready after $seconds s"
wait
"""

GREETING = """\
#!/bin/busybox sh
printf 'RFB 003.008\\n'
exec cat
"""

SILENCE = """\
#!/bin/busybox sh
exec cat >/dev/null
"""

ANSWER = """\
#!/bin/busybox sh
read -r method path version
while read -r line && [ ${#line} -gt 1 ]; do :; done
code="200 OK" form='@READY@'
case $path in
/health) ;;
*) code="404 Not Found" form='{}' ;;
esac
if [ "$KIND$path" = sick/health ]; then
    printf x >>/answers
    read -r answers </answers
    if [ ${#answers} -gt $NUMBER ]; then code="503 Service Unavailable" form='@SICK@'; fi
fi
read -r up _ </proc/uptime
body=$(printf "$form" "$IMAGE" "$VM" "$SESSION" "$up" "$BOOT")
head="HTTP/1.1 $code\\r\\nContent-Type: application/json\\r\\nConnection: close\\r\\n"
printf "${head}Content-Length: %d\\r\\n\\r\\n%s" ${#body} "$body"
"""


def health_form(*, is_sick: bool) -> str:
    """The agent's answer as JSON for printf.

    Its five %s are: image, VM and session in JSON, uptime in seconds, boot id.
    """
    components: dict[str, ComponentState] = {
        name: {"ok": True, "detail": "quick"} for name in ("desktop", "vnc", "novnc", "browser")
    }
    if is_sick:
        components["browser"] = {"ok": False, "detail": "it has answered often enough"}
    reply: HealthReply = {
        "status": "failed" if is_sick else "ready",
        "stage": "services" if is_sick else "ready",
        "components": components,
        "failing": [name for name, state in components.items() if not state["ok"]],
        "services": {},
        "failed_units": [],
        "image_digest": "%s",
        "vm_id": "%s",
        "session_id": "%s",
        "uptime_seconds": 0.0,
        "boot_id": "%s",
        "agent_version": __version__,
    }
    text = json.dumps(reply).replace('"uptime_seconds": 0.0', '"uptime_seconds": %s')
    return re.sub(r'("(?:image_digest|vm_id|session_id)": )"%s"', r"\1%s", text)


def filled(text: str, **values: object) -> str:
    """`text` with its @NAMES@ replaced."""
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def initrd_files(busybox: bytes, modules: Mapping[str, bytes]) -> dict[str, bytes]:
    """Path and content of the initrd's files; modules come in the order to load them."""
    ports = {"VNC": VNC_PORT, "NOVNC": NOVNC_PORT, "AGENT": AGENT_PORT}
    hexed = {f"{name}_HEX": f"{port:04X}" for name, port in ports.items()}
    names = " ".join(modules)
    addresses = {"ADDRESS": GUEST_ADDRESS, "GATEWAY": GUEST_GATEWAY}
    forms = {"READY": health_form(is_sick=False), "SICK": health_form(is_sick=True)}
    return {
        "init": filled(INIT, MODULES=names, **ports, **hexed, **addresses).encode(),
        "answer": filled(ANSWER, **forms).encode(),
        "greeting": GREETING.encode(),
        "silence": SILENCE.encode(),
        "bin/busybox": busybox,
        **modules,
    }


def cpio_archive(files: Mapping[str, bytes]) -> bytes:
    """The files, all of them programs, with the folders and devices that a guest needs."""
    members = [cpio_member(name, 0o040755) for name in ("bin", "dev", "proc")]
    members.append(cpio_member("dev/console", 0o020600, device=(5, 1)))
    members.append(cpio_member("dev/null", 0o020666, device=(1, 3)))
    members += [cpio_member(name, 0o100755, files[name]) for name in sorted(files)]
    return b"".join([*members, cpio_member("TRAILER!!!", 0)])


def cpio_member(
    name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
) -> bytes:
    """One member of a cpio archive in the kernel's format ("newc"), without owner and time."""
    ascii_name = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(ascii_name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + ascii_name
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def command_line(variant: str) -> str:
    """Raises ValueError for a variant that there is not."""
    name, _, number = variant.partition(":")
    if name not in VARIANTS or not (number or "0").isdecimal():
        raise ValueError(f"no variant {variant}, there are {', '.join(VARIANTS)}")
    return " ".join([*KERNEL_WORDS, f"quick={name}:{number or VARIANTS[name]}"]) + "\n"
