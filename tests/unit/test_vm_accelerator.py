"""The choice of KVM or TCG, its record on a host, and its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.errors import MachineBusy
from polydev.vm import accelerator
from polydev.vm.accelerator import choose_accelerator, known_accelerator, why_no_kvm
from polydev.vm.cpu_wait_time import CpuWait


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ('{"accelerator": "kvm", "why": null}', "kvm"),
        ('{"accelerator": "tcg", "why": "no"}', "tcg"),
        ('{"accelerator": "xen"}', "tcg"),
        *((text, "tcg") for text in ("", "{", "{}", "[]", "null", "7")),
    ],
)
def test_known_accelerator_is_read_from_the_record(tmp_path: Path, text: str, known: str) -> None:
    file = tmp_path / "accelerator.json"
    file.write_text(text)
    assert known_accelerator(file) == known


def test_accelerator_without_a_record_is_tcg(tmp_path: Path) -> None:
    assert known_accelerator(tmp_path / "accelerator.json") == "tcg"


class TestWhyNoKvm:
    def test_why_no_kvm_without_a_device(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(accelerator, "KVM_DEVICE", tmp_path / "kvm")
        assert why_no_kvm(tmp_path) == f"there is no {tmp_path}/kvm"

    @pytest.fixture
    def device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        device = tmp_path / "kvm"
        device.touch()
        monkeypatch.setattr(accelerator, "KVM_DEVICE", device)
        return device

    def test_why_no_kvm_without_an_image(self, device: Path, tmp_path: Path) -> None:
        assert why_no_kvm(tmp_path / "vmlinux") == "there is no image yet to boot"

    @pytest.mark.parametrize("failure", [None, "QEMU ended: no"])
    def test_why_no_kvm_after_a_trial_boot(
        self, device: Path, monkeypatch: pytest.MonkeyPatch, failure: str | None
    ) -> None:
        monkeypatch.setattr(accelerator, "kvm_failure", lambda kernel: failure)
        words = f"{device} exists, but no VM boots with it: QEMU ended: no"
        assert why_no_kvm(device) == (words if failure else None)


def test_kvm_trial_on_a_busy_machine_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(kernel: Path) -> str | None:
        raise MachineBusy("whether KVM works could not be found out", CpuWait(20, 18))

    device, memory = tmp_path / "kvm", tmp_path / "accelerator.json"
    device.touch()
    monkeypatch.setattr(accelerator, "KVM_DEVICE", device)
    monkeypatch.setattr(accelerator, "FOUND", tmp_path / "found.json")
    monkeypatch.setattr(accelerator, "kvm_failure", starved)
    kernel = tmp_path / "vmlinux"
    kernel.touch()
    assert choose_accelerator(kernel, memory) == "tcg"
    assert not memory.exists()
    monkeypatch.setattr(accelerator, "GOLDEN_IMAGE", kernel)
    assert accelerator.main() == 1
    assert not (tmp_path / "found.json").exists()
    monkeypatch.setattr(accelerator, "kvm_failure", lambda kernel: None)
    assert choose_accelerator(kernel, memory) == "kvm"
