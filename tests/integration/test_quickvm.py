"""The quick VM in all its variants: they boot in parallel, and each fails as described."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest

from polydev.errors import VmError
from polydev.image.image_folder import vm_config
from polydev.image.store import ImageStore
from polydev.image_record import ImageRecord
from polydev.vm import boot_stages
from polydev.vm.health import agent_health
from polydev.vm.qemu_process import Machine, start
from tests.quickguest import VARIANTS
from tests.quickvm import MEMORY_MIB, make_quick_image

# Seconds until a boot counts as failed, for a busy machine.
DEADLINE_SECONDS = 300.0
POLL_SECONDS = 0.05
UNANSWERED_SECONDS = 2.0
ALL = list(boot_stages.STAGES[1:])
ASKERS, QUESTIONS = 8, 24

Machines = dict[str, Machine]


def wait_until(what: str, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(POLL_SECONDS)


def wait_for_stage(machine: Machine, stage: boot_stages.Stage) -> None:
    def there() -> bool:
        serial = machine.serial()
        assert machine.alive(), f"it ended:\n{serial}"
        return boot_stages.boot_stage(serial) == stage

    wait_until(stage, there)


@pytest.fixture(scope="module")
def machines(
    store: ImageStore, image: ImageRecord, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machines]:
    """A VM of each variant, all started at once."""
    images = tmp_path_factory.mktemp("quick-images")
    golden = store.path(image.digest)
    with ExitStack() as stopped:
        found: Machines = {}
        for variant in VARIANTS:
            quick = make_quick_image(golden, images, variant)
            folder = tmp_path_factory.mktemp(f"quick-{variant}")
            config = vm_config(quick, f"vm-{variant}", folder, "tcg")
            words = f"{config.cmdline.strip()} polydev.session=session-{variant}"
            machine = start(replace(config, cmdline=words, cpus=1, memory_mib=MEMORY_MIB))
            stopped.callback(machine.stop)
            found[variant] = machine
        yield found


@pytest.fixture(scope="module")
def later(machines: Machines) -> Machines:
    """The same VMs once the slowest is ready; stages not reached by then are never reached."""
    wait_for_stage(machines["silent"], "init")
    wait_for_stage(machines["deaf"], "services")
    wait_for_stage(machines["slow"], "ready")
    return machines


@pytest.fixture(scope="module")
def healthy(machines: Machines) -> Machine:
    wait_for_stage(machines["healthy"], "ready")
    return machines["healthy"]


def ask(machine: Machine, timeout_seconds: float = 60.0) -> int:
    return agent_health(machine.config.ports, timeout_seconds)[0]


def test_healthy_passes_all_stages(healthy: Machine) -> None:
    assert boot_stages.stages_seen(healthy.serial()) == ALL
    assert boot_stages.boot_is_over(healthy.serial())


def test_healthy_agent_reports_its_identity(healthy: Machine) -> None:
    status, body = agent_health(healthy.config.ports, 60)
    assert status == 200
    assert (body["status"], body["stage"], body["failing"]) == ("ready", "ready", [])
    assert (body["vm_id"], body["session_id"]) == ("vm-healthy", "session-healthy")
    assert body["image_digest"] == healthy.config.image_digest


def test_healthy_agent_answers_concurrent_requests(healthy: Machine) -> None:
    with ThreadPoolExecutor(ASKERS) as pool:
        answers = list(pool.map(lambda _: ask(healthy), range(QUESTIONS)))
    assert answers == [200] * QUESTIONS


def test_vnc_sends_greeting_and_echoes(healthy: Machine) -> None:
    ports = healthy.config.ports
    with socket.create_connection((ports.host, ports.vnc), timeout=60) as client:
        stream = client.makefile("rwb")
        assert stream.readline() == b"RFB 003.008\n"
        stream.write(b"RFB 003.008\n")
        stream.flush()
        assert stream.readline() == b"RFB 003.008\n"


def test_novnc_port_echoes(healthy: Machine) -> None:
    ports = healthy.config.ports
    with socket.create_connection((ports.host, ports.novnc), timeout=60) as client:
        client.sendall(b"anyone there?")
        assert client.recv(64) == b"anyone there?"


def test_panic_ends_the_vm(machines: Machines) -> None:
    wait_until("the panic", lambda: not machines["panic"].alive())
    said = machines["panic"].serial()
    assert "Attempted to kill init" in (boot_stages.kernel_panic(said) or "")
    assert boot_stages.boot_stage(said) == "init"


def test_sick_is_healthy_three_times(machines: Machines) -> None:
    wait_for_stage(machines["sick"], "ready")
    assert [ask(machines["sick"]) for _ in range(5)] == [200, 200, 200, 503, 503]
    _, body = agent_health(machines["sick"].config.ports, 60)
    assert (body["status"], body["failing"]) == ("failed", ["browser"])


def test_slow_becomes_ready(later: Machines) -> None:
    assert ask(later["slow"]) == 200


def test_silent_has_no_network(later: Machines) -> None:
    assert boot_stages.stages_seen(later["silent"].serial()) == ["kernel", "init"]
    with pytest.raises(VmError, match="does not answer"):
        ask(later["silent"], UNANSWERED_SECONDS)


def test_deaf_never_answers(later: Machines) -> None:
    assert boot_stages.stages_seen(later["deaf"].serial()) == ALL[:-1]
    assert boot_stages.boot_is_over(later["deaf"].serial())
    with pytest.raises(VmError, match="does not answer"):
        ask(later["deaf"], UNANSWERED_SECONDS)
