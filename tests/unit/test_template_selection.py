"""The source of a VM that starts now: templates, images and promotions in a store."""

from __future__ import annotations

import asyncio
import json
import threading
from itertools import count
from pathlib import Path
from typing import Literal

import pytest

from polydev.controller.entities import BEING_MADE
from polydev.controller.host.alert_rules import Unknown, observe_template
from polydev.controller.machines import template_maker, template_selection
from polydev.controller.machines.agent_answers import AgentHealth
from polydev.controller.machines.agent_client import AgentClient
from polydev.controller.machines.hypervisor import Origin, TemplatesReport
from polydev.controller.machines.systemd_bus import SystemdBus, UnitActivity
from polydev.controller.machines.systemd_hypervisor import TEMPLATE_MAKER, SystemdHypervisor
from polydev.controller.machines.template_selection import templates_now, templates_of, wanted_of
from polydev.controller.settings import ControllerSettings, VmSettings
from polydev.durable_files import point_link
from polydev.errors import AgentError, ImageError, VmError
from polydev.hosttool import golden_link, images
from polydev.image_layout import GOLDEN_LINK
from polydev.vm.cpu_time import CpuWatch
from polydev.vm.cpu_wait_time import CpuSample, ThreadTimes
from polydev.vm.template_client import FILES
from polydev.vm.template_store import Build, Template, TemplateStore
from tests.unit.hosttool_host import arrive

A, B, C = "a" * 64, "b" * 64, "c" * 64


class Store:
    """A host's image store, with QEMU as it was when the test began."""

    def __init__(self, root: Path) -> None:
        self.settings = ControllerSettings(image_store=root)
        self.templates = templates_of(self.settings)
        self.templates.folder.mkdir(parents=True)
        for digest in (A, B, C):
            arrive(root, digest)
            images.add(digest, root)

    def golden(self, digest: str) -> None:
        golden_link.make_golden(digest, self.settings.image_store)

    def key(self, digest: str) -> str:
        return wanted_of(self.settings, digest).key

    def make_template(self, digest: str) -> None:
        place = self.templates.place(self.key(digest))
        place.mkdir(parents=True)
        (place / "record.json").write_text(json.dumps(vars(self.record(digest))))

    def record(self, digest: str) -> Template:
        sums = dict.fromkeys(FILES, "0" * 64)
        made_at = float("abc".index(digest[0]))
        return Template(self.key(digest), digest, "QEMU 7", "tcg", 2, 2048, sums, made_at, 2, 3)

    def build(self, digest: str, **words: object) -> None:
        build = Build(self.key(digest), digest, 1.0, "saving memory")
        self.templates.note(Build(**{**vars(build), **words}))

    def now(self, *, being_made: bool = False, ended: str = "") -> TemplatesReport:
        return templates_now(self.settings, being_made=being_made, ended=ended)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    # The QEMU that is installed here is not asked.
    monkeypatch.setattr(template_selection, "_version", lambda written_at: "QEMU 7")
    return Store(tmp_path / "store")


def test_template_key_depends_on_the_cpu_model(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = set()
    for model in ("Xeon 6973P", "EPYC 9754"):
        cpu_info = tmp_path / model
        cpu_info.write_text(f"processor\t: 0\nmodel name\t: {model}\ncpu MHz\t\t: 2596.1\n")
        monkeypatch.setattr(template_selection, "CPUINFO", cpu_info)
        keys.add(store.key(A))
    assert len(keys) == 2


def test_template_of_the_golden_image_takes_precedence(store: Store) -> None:
    for digest in (A, B):
        store.golden(digest)
        store.make_template(digest)
    report = store.now()
    assert report.origin == Origin(B, store.key(B))
    assert (report.golden, report.wanted) == (B, store.key(B))
    assert [each.image_digest for each in report.records] == [A, B]
    assert (report.step, report.failure) == (None, None)


def test_previous_image_serves_until_the_new_template_is_made(store: Store) -> None:
    for digest in (A, B):
        store.golden(digest)
        store.make_template(digest)
    store.golden(C)
    assert store.now(being_made=True).origin == Origin(B, store.key(B))
    store.make_template(C)
    assert store.now(being_made=True).origin == Origin(C, store.key(C))


def test_image_newer_than_the_golden_one_does_not_serve(store: Store) -> None:
    store.golden(A)
    store.golden(B)
    store.make_template(B)
    link = store.settings.image_store / GOLDEN_LINK
    point_link(link, "promotions/000001/rootfs.ext4")
    assert store.now(being_made=True).origin == Origin(A, because=BEING_MADE)


@pytest.mark.parametrize("gone", ["its image", "its size", "its QEMU"])
def test_outdated_template_does_not_serve(
    store: Store, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.golden(A)
    store.make_template(A)
    store.golden(B)
    if gone == "its image":
        (store.settings.image_store / "images" / A).rename(store.settings.image_store / "gone")
    elif gone == "its size":
        store.settings = store.settings.model_copy(update={"vm": VmSettings(memory_mib=4096)})
    else:
        monkeypatch.setattr(template_selection, "_version", lambda written_at: "QEMU 8")
    assert store.now().origin == Origin(B, because="its image has no template")


def test_vms_boot_while_the_first_template_is_made(store: Store) -> None:
    store.golden(A)
    store.build(A)
    report = store.now(being_made=True)
    assert report.origin == Origin(A, because=BEING_MADE)
    assert (report.step, report.failure) == ("saving memory", None)


@pytest.mark.parametrize(
    ("build", "ended", "failure"),
    [
        (
            {"error": "a clone of the template ended", "ended_at": 2.0},
            "",
            "a clone of the template ended",
        ),
        ({}, "the unit failed: oom-kill", "the unit failed: oom-kill"),
        ({}, "", "its build was interrupted while saving memory"),
        (
            {"error": "a clone of the template ended", "ended_at": 2.0},
            "exit-code 1",
            "a clone of the template ended",
        ),
        ({"key": "another"}, "the unit failed: exit-code 1", "the unit failed: exit-code 1"),
    ],
)
def test_missing_template_is_reported_with_its_failure(
    store: Store, build: dict[str, object], ended: str, failure: str
) -> None:
    store.golden(A)
    store.build(A, **build)
    report = store.now(ended=ended)
    assert report.failure == failure
    assert report.origin == Origin(A, because=f"its template could not be made: {failure}")
    # The previous image still serves, and the failure is reported nevertheless.
    store.make_template(A)
    store.golden(B)
    store.build(B, **build)
    report = store.now(ended=ended)
    assert (report.origin, report.failure) == (Origin(A, store.key(A)), failure)


def test_template_serves_after_a_failed_rebuild(store: Store) -> None:
    store.golden(A)
    store.make_template(A)
    store.build(A, error="a clone of the template ended", ended_at=2.0)
    report = store.now()
    assert (report.origin, report.failure) == (
        Origin(A, store.key(A)),
        "a clone of the template ended",
    )
    found = observe_template(report)["template_missing"]
    assert not isinstance(found, Unknown)
    (seen,) = found
    assert (seen.raises, seen.keeps) == (None, None)
    store.build(A, ended_at=2.0)
    assert store.now(ended="the unit failed: signal 9").failure is None


def test_failure_of_another_template_is_ignored(store: Store) -> None:
    store.golden(A)
    store.build(B, error="a clone of the template ended", ended_at=2.0)
    report = store.now()
    assert report.failure is None
    assert report.origin == Origin(A, because="its image has no template")
    store.make_template(A)
    assert store.now(ended="the unit failed: signal 9").failure is None


class Bus(SystemdBus):
    """systemd with the template maker in the state that a test sets."""

    maker = UnitActivity("inactive")

    async def state(self, unit: str) -> UnitActivity:
        assert unit == "polydev-template.service"
        return self.maker


@pytest.mark.parametrize(
    ("maker", "step", "failure"),
    [
        (UnitActivity("active", 7), "saving memory", None),
        (UnitActivity("deactivating"), "saving memory", None),
        (UnitActivity("failed", detail="oom-kill"), None, f"{TEMPLATE_MAKER} failed: oom-kill"),
        (UnitActivity("inactive"), None, "its build was interrupted while saving memory"),
    ],
)
def test_unit_state_shows_whether_a_template_is_being_made(
    store: Store, maker: UnitActivity, step: str | None, failure: str | None
) -> None:
    store.golden(A)
    store.build(A)
    bus = Bus()
    bus.maker = maker
    report = asyncio.run(SystemdHypervisor(store.settings, bus).templates())
    assert (report.step, report.failure) == (step, failure)


def test_template_with_a_wrong_record_is_not_found(store: Store) -> None:
    store.make_template(A)
    mine, sums = vars(store.record(A)), dict.fromkeys(FILES, "0" * 64)
    place = store.templates.place(mine["key"]) / "record.json"
    wrong: list[object] = [
        {**mine, "key": store.key(B)},
        {**mine, "files": {"memory": "0" * 64}},
        {**mine, "files": {**sums, "more": "0" * 64}},
        {**mine, "more": 1},
        {name: value for name, value in mine.items() if name != "qemu"},
        [mine],
    ]
    for record in wrong:
        place.write_text(json.dumps(record))
        assert store.templates.find(mine["key"]) is None
        assert store.templates.all() == []
    place.write_text("{")
    assert store.templates.find(mine["key"]) is None
    place.write_text(json.dumps(mine))
    assert store.templates.find(mine["key"]) == store.record(A)


def test_no_origin_without_a_golden_image(store: Store) -> None:
    with pytest.raises(ImageError, match="no golden image"):
        store.now()


def test_template_builds_are_exclusive(tmp_path: Path) -> None:
    templates, waits = TemplateStore(tmp_path / "templates"), threading.Event()
    order: list[str] = []

    def second() -> None:
        with templates.building(waits.set):
            order.append("second")

    with templates.building(lambda: order.append("first waits")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(60)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert (tmp_path / "templates" / ".lock").stat().st_mode & 0o077 == 0


def test_existing_template_is_rebuilt_on_request(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def makes(*words: object) -> Template:
        return store.record(A)

    monkeypatch.setattr(template_maker, "_make", makes)
    store.golden(A)
    store.make_template(A)
    (store.templates.folder / ".again").touch()
    made = [template_maker.make_template(store.settings, lambda words: None)[1] for _ in range(2)]
    assert made == [True, False]


def test_failed_build_is_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*words: object) -> Template:
        words[-1]("trying a clone")  # type: ignore[operator]
        raise VmError("a clone of the template ended")

    monkeypatch.setattr(template_maker, "_make", fails)
    store.golden(A)
    said: list[str] = []
    with pytest.raises(VmError):
        template_maker.make_template(store.settings, said.append)
    build = store.templates.build()
    assert build is not None
    assert (build.key, build.step) == (store.key(A), "trying a clone")
    assert build.error == "a clone of the template ended"
    assert build.ended_at is not None
    assert said == ["starting its VM", "trying a clone"]
    assert store.now().failure == "a clone of the template ended"


class AgentOfAClone(AgentClient):
    """An agent with these states; the last one is repeated."""

    def __init__(self, *states: Literal["ready", "starting", "failed"]) -> None:
        super().__init__(1)
        self.states = list(states)

    async def health_or_error(self, address: str) -> AgentHealth | AgentError:
        status = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        failing = () if status == "ready" else ("novnc",)
        return AgentHealth(
            status=status,
            stage="ready",
            components={},
            failing=failing,
            failed_units=(),
            vm_id="trial",
        )


def cpu_of_a_clone(seconds: float) -> CpuWatch:
    """CPU times of a clone that never waited, so many seconds apart."""
    clock = count(step=seconds)
    return CpuWatch(lambda: CpuSample(next(clock), {1: ThreadTimes()}, cpus=2))


def test_trial_clone_may_be_ready_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_maker, "POLL_SECONDS", 0)
    agent = AgentOfAClone("failed", "starting", "ready")
    found = template_maker.ready_clone(lambda: True, cpu_of_a_clone(1), agent)
    assert asyncio.run(found).status == "ready"


def test_trial_clone_that_is_never_ready_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_maker, "POLL_SECONDS", 0)
    never = template_maker.ready_clone(lambda: True, cpu_of_a_clone(10), AgentOfAClone("failed"))
    with pytest.raises(VmError, match="a clone of the template is not ready: novnc"):
        asyncio.run(never)


def test_trial_clone_that_ends_fails_the_build() -> None:
    ended = template_maker.ready_clone(lambda: False, cpu_of_a_clone(1), AgentOfAClone("ready"))
    with pytest.raises(VmError, match="a clone of the template ended"):
        asyncio.run(ended)
