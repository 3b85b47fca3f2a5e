"""When `up` keeps the running VM: if it is slow on a busy machine, but not if it hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev import local_vm
from polydev.errors import VmError, VmTimeout
from polydev.image.store import ImageStore
from polydev.settings import Settings
from polydev.vm.config import Ports, VmConfig
from polydev.vm.cpu_wait_time import CpuSample, ThreadTimes
from polydev.vm.health import TIMEOUT_SECONDS
from polydev.vm.qemu_process import Machine

DIGEST = "d" * 64
CONFIG = VmConfig(
    vm_id="local",
    folder=Path("/vm"),
    kernel=Path("/image/vmlinux"),
    initrd=Path("/image/initrd.img"),
    cmdline="root=/dev/vda",
    rootfs=Path("/image/rootfs.ext4"),
    image_digest=DIGEST,
    ports=Ports(1, 2, 3),
)
SILENCE = VmTimeout("the agent does not answer within 10 s")
REFUSED = VmError("the agent does not answer: connection refused")


class Replaced(Exception):
    """The VM was not kept."""


@pytest.mark.parametrize(
    ("waiting", "answers", "keeps"),
    [
        (0, [200], True),
        (0, [503], False),
        (0, [REFUSED], False),
        (0, [SILENCE, 200], False),
        (0.7, [SILENCE, SILENCE, 200], True),
        (0.7, [SILENCE, REFUSED], False),
        (0.7, [503, SILENCE, 200], True),
        (0.9, [503] * 4, False),
        (0.9, [SILENCE] * 4, False),
    ],
)
def test_running_vm_is_kept_unless_it_hangs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waiting: float,
    answers: list[int | VmError],
    keeps: bool,
) -> None:
    """The VM waits for a CPU for this share of the time; each answer takes its time limit."""
    settings = Settings(
        store=tmp_path / "store", cache=tmp_path / "cache", state=tmp_path / "state"
    )
    (settings.state / "local").mkdir(parents=True)
    vm = local_vm.LocalVm(vm_id="local", image_digest=DIGEST, pid=1, config=CONFIG)
    (settings.state / "local/vm.json").write_text(vm.model_dump_json())
    left, now = iter(answers), 0.0

    def ask(ports: Ports) -> tuple[int, dict[str, object]]:
        nonlocal now
        now += TIMEOUT_SECONDS
        answer = next(left)
        if isinstance(answer, VmError):
            raise answer
        return answer, {}

    def sample(machine: Machine) -> CpuSample:
        times = ThreadTimes(ran=(1 - waiting) * now, waited=waiting * now)
        return CpuSample(now, {1: times}, cpus=2)

    def stop(machine: Machine) -> None:
        raise Replaced

    monkeypatch.setattr(local_vm, "agent_health", ask)
    monkeypatch.setattr(local_vm, "POLL_SECONDS", 0)
    monkeypatch.setattr(Machine, "alive", lambda machine: True)
    monkeypatch.setattr(Machine, "cpu_sample", sample)
    monkeypatch.setattr(Machine, "stop", stop)
    store = ImageStore(settings.store)
    if keeps:
        assert local_vm.bring_up(DIGEST, settings, store, lambda stage: None) == (vm, False)
    else:
        with pytest.raises(Replaced):
            local_vm.bring_up(DIGEST, settings, store, lambda stage: None)
