"""The command lines of QEMU for a VmConfig. Pure: nothing is started here."""

from __future__ import annotations

from polydev.host_layout import AGENT_PORT, GUEST_ADDRESS, GUEST_GATEWAY, NOVNC_PORT, VNC_PORT
from polydev.vm.config import GUEST_NETWORK, IDENTITY_PORT, VmConfig

QEMU = "qemu-system-x86_64"
# TCG executes `rep movsb` byte by byte. Without ERMS, kernel and C library copy in larger units.
# TCG of QEMU 10 also has FSRM, and a kernel that finds it without ERMS hangs early in its boot.
EMULATED_CPU = "max,erms=off,fsrm=off"
# A process that escapes from a guest into QEMU can start no program and gain no privilege.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
TEST_CONSOLE_TTY = "ttyS1"


def kernel_command_line(config: VmConfig) -> str:
    """Return the image's own command line, then the ids of the VM, and a shell for tests."""
    words = [
        config.cmdline.strip(),
        f"polydev.image={config.image_digest}",
        f"polydev.vm={config.vm_id}",
    ]
    if config.session_id:
        words.append(f"polydev.session={config.session_id}")
    if config.test_console:
        words.append(f"systemd.debug_shell={TEST_CONSOLE_TTY}")
    return " ".join(words)


def overlay_argv(config: VmConfig) -> list[str]:
    """Create the VM's disk, an overlay: the VM writes there, and its image stays as it is."""
    return [
        *("qemu-img", "create", "-q", "-f", "qcow2"),
        *("-F", "raw", "-b", str(config.rootfs), str(config.disk)),
    ]


def qemu_argv(config: VmConfig, qmp_listener: int | None = None) -> list[str]:
    """Return the command line of a VM.

    `qmp_listener` is a descriptor that listens for QMP; without it, QEMU makes the socket.
    """
    argv = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-name", f"polydev-{config.vm_id},debug-threads=on"]
    argv += _memory(config)
    if config.accelerator == "kvm":
        argv += ["-accel", "kvm", "-cpu", "host"]
    else:
        cache = f"tb-size={config.translation_cache_mib}"
        argv += ["-accel", f"tcg,thread=multi,{cache}", "-cpu", EMULATED_CPU]
    argv += ["-smp", str(config.cpus)]
    argv += ["-kernel", str(config.kernel), "-initrd", str(config.initrd)]
    argv += ["-append", kernel_command_line(config)]
    argv += ["-drive", f"if=none,id=root,file={config.disk},format=qcow2,cache=unsafe"]
    argv += ["-device", "virtio-blk-pci,drive=root"]
    argv += ["-netdev", _netdev(config)]
    argv += ["-device", f"virtio-net-pci,netdev=net0,mac={config.mac},romfile="]
    argv += ["-device", "virtio-rng-pci"]
    # It tells the guest's kernel that it was resumed as a clone.
    argv += ["-device", "vmgenid,guid=auto"]
    argv += ["-chardev", f"socket,id=identity,path={config.identity_socket},server=on,wait=off"]
    argv += ["-device", "virtio-serial-pci"]
    argv += ["-device", f"virtserialport,chardev=identity,name={IDENTITY_PORT}"]
    argv += ["-serial", f"file:{config.serial_log}"]
    where = f"path={config.qmp_socket}" if qmp_listener is None else f"fd={qmp_listener}"
    argv += ["-chardev", f"socket,id=qmp,{where},server=on,wait=off"]
    argv += ["-mon", "chardev=qmp,mode=control"]
    if config.tap:
        argv += ["-sandbox", SANDBOX]
    if config.test_console:
        argv += ["-chardev", f"socket,id=console,path={config.console_socket},server=on,wait=off"]
        argv += ["-serial", "chardev:console"]
    return argv


def _memory(config: VmConfig) -> list[str]:
    """Size and backing of the memory. A clone waits for the place of its state."""
    size = ["-m", str(config.memory_mib)]
    if config.memory_file is None:
        return ["-machine", "q35", *size]
    share = "off" if config.memory_file.private else "on"
    backend = f"memory-backend-file,id=memory,size={config.memory_mib}M"
    argv = ["-machine", "q35,memory-backend=memory", *size]
    argv += ["-object", f"{backend},mem-path={config.memory_file.path},share={share}"]
    return argv + (["-incoming", "defer"] if config.is_clone else [])


def _netdev(config: VmConfig) -> str:
    if config.tap:
        return f"tap,id=net0,ifname={config.tap},script=no,downscript=no"
    ports = config.ports
    forwards = (
        (ports.agent, AGENT_PORT),
        (ports.vnc, VNC_PORT),
        (ports.novnc, NOVNC_PORT),
    )
    options = [
        "user",
        "id=net0",
        f"net={GUEST_NETWORK}",
        f"host={GUEST_GATEWAY}",
        f"restrict={'off' if config.outbound else 'on'}",
    ]
    options += [
        f"hostfwd=tcp:{ports.host}:{outer}-{GUEST_ADDRESS}:{inner}" for outer, inner in forwards
    ]
    return ",".join(options)
