"""Operators' templates over the API, and the output of the verbs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polydev.controller.api.templates import EXAMPLE, TemplatesAnswer
from polydev.controller.entities import BEING_MADE
from polydev.controller.machines.hypervisor import Origin, TemplatesReport
from polydev.controller.settings import PoolSettings
from polydev.errors import ImageError
from polydev.vm.template_store import Template
from tests.api import IMAGE_DIGEST, ApiHost, Served, api_host
from verbs.templates import _details, _notes

PATH = "/api/admin/templates"
OLD, WANTED = "7e" * 32, "8f" * 32
RECORD = Template(OLD, "a" * 64, "QEMU 7", "tcg", 2, 2048, {"memory": "5d"}, 60.0, 30.5, 50.25)


@pytest.fixture
def host(migrated: Path, tmp_path: Path) -> ApiHost:
    return api_host(migrated, tmp_path, slots=(2, 3))


def told(host: ApiHost, report: TemplatesReport | None, *, templates: bool = True) -> Any:
    """Return the answer to an admin, on a host with this report."""
    if report is not None:
        host.hypervisor.report = report
    answers: list[Any] = []

    async def scenario(asked: Served) -> None:
        answer = await asked.ask("GET", PATH, "admin")
        assert answer.status_code == 200, answer.text
        answers.append(answer.json())

    host.run(scenario, templates=templates)
    return answers[0]


def report(origin: Origin, **words: Any) -> TemplatesReport:
    return TemplatesReport(IMAGE_DIGEST, WANTED, origin, (RECORD,), disk_bytes={OLD: 7}, **words)


def test_older_template_serves_while_the_next_is_made(host: ApiHost) -> None:
    found = told(host, report(Origin("a" * 64, OLD), step="saving memory"))
    assert found == {
        "enabled": True,
        "goldenImage": IMAGE_DIGEST,
        "wanted": WANTED,
        "serving": OLD,
        "bootsBecause": None,
        "build": {"state": "running", "detail": "saving memory"},
        "templates": [
            {
                "key": OLD,
                "imageDigest": "a" * 64,
                "serves": True,
                "madeAt": "1970-01-01T00:01:00Z",
                "bootSeconds": 30.5,
                "seconds": 50.25,
                "diskBytes": 7,
                "memoryMib": 2048,
                "cpus": 2,
                "hypervisor": "QEMU 7",
                "accelerator": "tcg",
                "files": {"memory": "5d"},
            }
        ],
    }
    assert _notes(found) == [
        "the template of golden image 4f1d4f1d4f1d is being made: saving memory"
    ]
    assert "of it 30.5 s to boot" in _details(found["templates"][0])


def test_failed_template_is_shown_with_its_reason(host: ApiHost) -> None:
    origin = Origin(IMAGE_DIGEST, because="its template could not be made: no")
    found = told(host, report(origin, failure="no"))
    assert (found["serving"], found["templates"][0]["serves"]) == (None, False)
    assert found["build"] == {"state": "failed", "detail": "no"}
    assert _notes(found) == [
        "VMs boot: its template could not be made: no",
        "making the template of golden image 4f1d4f1d4f1d failed: no",
    ]


def test_no_template_serves_if_templates_are_off(host: ApiHost) -> None:
    found = told(host, report(Origin(IMAGE_DIGEST, OLD)), templates=False)
    assert (found["enabled"], found["serving"]) == (False, None)
    assert found["bootsBecause"] == "templates are off on this host"
    assert not found["templates"][0]["serves"]


def test_first_template_in_progress_is_shown(host: ApiHost) -> None:
    being_made = replace(report(Origin(IMAGE_DIGEST, because=BEING_MADE), step="x"), records=())
    found = told(host, being_made)
    assert (found["bootsBecause"], found["templates"]) == (BEING_MADE, [])


def test_host_without_a_golden_image_is_shown(host: ApiHost) -> None:
    async def none() -> TemplatesReport:
        raise ImageError("no golden image: the link is missing")

    host.hypervisor.templates = none  # type: ignore[method-assign]
    found = told(host, None)
    assert (found["goldenImage"], found["serving"]) == (None, None)
    assert found["bootsBecause"] == "no golden image: the link is missing"


def test_example_matches_its_model() -> None:
    assert TemplatesAnswer.model_validate(EXAMPLE).model_dump(mode="json", by_alias=True) == EXAMPLE


def test_pool_shows_why_it_is_not_full(host: ApiHost) -> None:
    host.hypervisor.report = report(Origin("a" * 64, OLD))
    answers: list[Any] = []

    async def scenario(asked: Served) -> None:
        answers.append((await asked.ask("GET", "/api/admin/pool", "admin")).json())
        await asked.services.vms.add_pooled("a" * 64, OLD, spare_slots=0)
        answers.append((await asked.ask("GET", "/api/admin/pool", "admin")).json())

    pool = PoolSettings(size=2, spare_slots=1, least_free_memory_mib=0)
    host.run(scenario, templates=True, pool=pool)
    empty, priming = answers
    assert empty == {
        "size": 2,
        "primed": 0,
        "priming": 0,
        "spareSlots": 1,
        "template": OLD,
        "imageDigest": "a" * 64,
        "detail": "there is room for one more",
    }
    assert (priming["primed"], priming["priming"]) == (0, 1)
    assert priming["detail"] == "all other slots are in use, or reserved for sessions"


@pytest.mark.parametrize("templates", [True, False])
def test_pool_without_a_template_shows_the_reason(host: ApiHost, templates: bool) -> None:
    host.hypervisor.report = report(Origin(IMAGE_DIGEST, because="it is so"))
    answers: list[Any] = []

    async def scenario(asked: Served) -> None:
        answers.append((await asked.ask("GET", "/api/admin/pool", "admin")).json())

    host.run(scenario, templates=templates)
    (found,) = answers
    assert (found["template"], found["imageDigest"]) == (None, None)
    why = "there is no template to resume them from"
    assert found["detail"] == (why if templates else "this host does not resume VMs from templates")
    assert found["size"] == (2 if templates else 0)
