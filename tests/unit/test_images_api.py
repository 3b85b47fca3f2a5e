"""Operators' images and deployments over the API, from real files."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from polydev.controller.host import deployments
from polydev.hosttool import deployment_records as host_records
from polydev.hosttool.paths import Paths
from polydev.image.sbom import sbom_json
from polydev.image.store import ImageStore
from polydev.image_layout import SBOM
from polydev.image_record import ImageRecord, Package, SpecResult
from tests.api import ApiHost, Served, api_host
from tests.images import FIRST, record_of, verification

IMAGES, DEPLOYMENTS = "/api/admin/images", "/api/admin/deployments"
NOBODYS = "0" * 64
SPECS = [
    SpecResult(name="test_a.py::test_one", outcome="passed", seconds=0.5),
    SpecResult(name="test_a.py::test_two", outcome="failed", seconds=0.1, message="it is not so"),
]


def add(store: ImageStore, seed: str, age_days: int, *, packages: list[Package]) -> ImageRecord:
    """Add an image with a report, but without boot files."""
    made = record_of(seed, FIRST - timedelta(days=age_days)).model_copy(
        update={
            "packages": packages,
            "verification": verification().model_copy(update={"specs": SPECS}),
        }
    )
    folder = store.path(made.digest)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(made.model_dump_json())
    (folder / SBOM).write_text(sbom_json(made, "bookworm"))
    return made


class Found:
    """A host with two images, and a third whose record is damaged."""

    def __init__(self, store: ImageStore) -> None:
        curl, jq = (Package(kind="deb", name=name, version="1") for name in ("curl", "jq"))
        newer = Package(kind="deb", name="curl", version="2")
        self.old = add(store, "old", 2, packages=[curl, jq])
        self.new = add(store, "new", 1, packages=[newer])
        self.damaged = "d" * 64
        folder = store.path(self.damaged)
        folder.mkdir()
        (folder / "record.json").write_text('{"digest": "<script>alert(1)</script>"}')
        (folder.parent / "not-an-image").mkdir()


@pytest.fixture
def host(migrated: Path, tmp_path: Path) -> ApiHost:
    return api_host(migrated, tmp_path, slots=(2, 3))


def told(host: ApiHost, *paths: str, status: int = 200) -> list[Any]:
    """Return the answers to an operator's requests."""
    answers: list[Any] = []

    async def scenario(asked: Served) -> None:
        for path in paths:
            answer = await asked.ask("GET", path, "operator")
            assert answer.status_code == status, answer.text
            answers.append(answer.json())

    host.run(scenario)
    return answers


class TestImages:
    @pytest.fixture
    def found(self, host: ApiHost) -> Found:
        return Found(ImageStore(host.settings.image_store))

    def test_images_are_listed_newest_first_with_damaged_ones(
        self, host: ApiHost, found: Found
    ) -> None:
        (answer,) = told(host, IMAGES)
        digests = [each["digest"] for each in answer["images"]]
        assert digests[:2] == [found.new.digest, found.old.digest]
        assert found.damaged in digests[2:]
        new, damaged = answer["images"][0], answer["images"][digests.index(found.damaged)]
        assert new["verification"]["specs"] == {"passed": 1, "failed": 1, "skipped": 0}
        assert new["verification"]["bootSeconds"] == 1.5
        assert (new["packages"], new["sizeBytes"], new["problem"]) == (1, 4 * 4096, None)
        assert damaged["recipe"] is None
        assert "is missing" in damaged["problem"]

    def test_images_are_paged(self, host: ApiHost, found: Found) -> None:
        (whole,) = told(host, IMAGES)
        digests, path = [], f"{IMAGES}?limit=1"
        while path:
            (page,) = told(host, path)
            digests += [each["digest"] for each in page["images"]]
            path = f"{IMAGES}?limit=1&before={page['next']}" if page["next"] else ""
        assert digests == [each["digest"] for each in whole["images"]]
        told(host, f"{IMAGES}?before={NOBODYS}", status=404)

    def test_image_answer_contains_its_record(self, host: ApiHost, found: Found) -> None:
        (answer,) = told(host, f"{IMAGES}/{found.new.digest}")
        assert ImageRecord.model_validate(answer["record"]) == found.new
        (damaged,) = told(host, f"{IMAGES}/{found.damaged}")
        assert damaged["record"] is None

    def test_sbom_lists_the_packages_of_the_image(self, host: ApiHost, found: Found) -> None:
        (bill,) = told(host, f"{IMAGES}/{found.old.digest}/sbom")
        assert bill["bomFormat"] == "CycloneDX"
        assert {each["name"] for each in bill["components"]} == {"curl", "jq"}
        told(host, f"{IMAGES}/{found.damaged}/sbom", status=404)

    def test_sbom_of_another_image_is_refused(self, host: ApiHost, found: Found) -> None:
        store = ImageStore(host.settings.image_store)
        (store.path(found.old.digest) / SBOM).write_text(sbom_json(found.new, "bookworm"))
        (problem,) = told(host, f"{IMAGES}/{found.old.digest}/sbom", status=500)
        assert problem["type"] == "urn:polydev:error:image-unreadable"

    def test_image_diff_goes_from_old_to_new(self, host: ApiHost, found: Found) -> None:
        (answer,) = told(host, f"{IMAGES}/{found.old.digest}/diff/{found.new.digest}")
        assert answer["packagesChanged"] == [
            {"kind": "deb", "name": "curl", "old": "1", "new": "2"}
        ]
        assert [each["name"] for each in answer["packagesRemoved"]] == ["jq"]
        assert answer["packagesAdded"] == []
        told(host, f"{IMAGES}/{found.old.digest}/diff/{NOBODYS}", status=404)
        told(host, f"{IMAGES}/{found.old.digest}/diff/{found.damaged}", status=500)

    @pytest.mark.parametrize(
        "name", ["..", "%2e%2e", "..%2f..%2fetc", "a" * 63, "A" * 64, f"{'a' * 64}%00", "a" * 65]
    )
    def test_malformed_digests_are_refused(self, host: ApiHost, found: Found, name: str) -> None:
        async def scenario(asked: Served) -> None:
            for path in (f"{IMAGES}/{name}", f"{IMAGES}/{name}/sbom"):
                answer = await asked.ask("GET", path, "operator")
                assert answer.status_code in (404, 422), answer.text

        host.run(scenario)


class TestDeployments:
    """Records as the host tool writes them."""

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        self.paths = Paths(home=tmp_path / "home")
        monkeypatch.setattr(deployments, "FOLDER", self.paths.records)
        self.paths.records.mkdir(parents=True)
        return self.paths.records

    def write(self, number: int, status: str = "succeeded", **words: Any) -> str:
        name = f"2026112{number}_101500-{number:04d}"
        at = datetime(2026, 11, 20 + number, 10, 15, tzinfo=timezone.utc)
        record = {
            "id": name,
            "kind": "deploy",
            "status": status,
            "host": "browsers-1",
            "who": "ada@desk",
            "commit": f"{number:04d}",
            "startedAt": at.isoformat(),
            "finishedAt": (at + timedelta(minutes=1)).isoformat(),
            "state": name if status == "succeeded" else words.get("previous"),
            "previous": None,
            "backup": True,
            "changes": 3,
            "operations": ["release", "handover"],
            **words,
        }
        host_records.write(self.paths, record)
        return name

    def test_deployments_are_listed_newest_first_with_unreadable_ones(
        self, host: ApiHost, folder: Path
    ) -> None:
        first = self.write(1)
        second = self.write(2, previous=first)
        (folder / "20261119_000000-dead.json").write_text("{ half a rec")
        (folder / "20261118_000000-beef.json").write_text('["<script>"]')
        (folder / "no-deployment.json").write_text("{}")
        (answer,) = told(host, DEPLOYMENTS)
        found = answer["deployments"]
        assert [each["id"] for each in found] == [
            second,
            first,
            "20261119_000000-dead",
            "20261118_000000-beef",
        ]
        assert (found[0]["number"], found[0]["who"], found[0]["changes"]) == (2, "ada@desk", 3)
        assert [each["status"] for each in found[2:]] == ["unreadable"] * 2
        assert "not valid JSON" in found[2]["problem"]
        assert told(host, f"{DEPLOYMENTS}/20261119_000000-dead")[0]["wayBack"]["command"] is None

    def test_deployments_are_paged(self, host: ApiHost, folder: Path) -> None:
        names = [self.write(number) for number in range(1, 6)]
        (page,) = told(host, f"{DEPLOYMENTS}?limit=3")
        (rest,) = told(host, f"{DEPLOYMENTS}?limit=3&before={page['next']}")
        listed = [each["id"] for each in (*page["deployments"], *rest["deployments"])]
        assert listed == names[::-1]
        assert rest["next"] is None

    def test_way_back_is_the_rollback_command(self, host: ApiHost, folder: Path) -> None:
        first = self.write(1)
        second = self.write(2, previous=first)
        third = self.write(3, previous=second)
        answers = told(host, *(f"{DEPLOYMENTS}/{each}" for each in (third, second, first)))
        assert [each["wayBack"]["command"] for each in answers] == [
            f"./inv rollback --to {second} --inventory FILE --host browsers-1",
            f"./inv rollback --to {first} --inventory FILE --host browsers-1",
            None,
        ]
        assert "nothing was deployed" in answers[2]["wayBack"]["reason"]
        assert answers[0]["record"]["operations"] == ["release", "handover"]

    def test_no_way_back_to_the_current_state_or_without_a_backup(
        self, host: ApiHost, folder: Path
    ) -> None:
        first = self.write(1)
        second = self.write(2, previous=first, backup=False)
        failed = self.write(3, "rolled-back", previous=second, backup=False)
        answers = told(host, *(f"{DEPLOYMENTS}/{each}" for each in (failed, second)))
        assert answers[0]["wayBack"]["reason"] == "the host already has that state"
        assert "is gone" in answers[1]["wayBack"]["reason"]

    def test_rollback_command_for_a_lab_has_no_host_options(
        self, host: ApiHost, folder: Path
    ) -> None:
        first = self.write(1, host="lab-dev")
        second = self.write(2, previous=first, host="lab-dev")
        (answer,) = told(host, f"{DEPLOYMENTS}/{second}")
        assert answer["wayBack"]["command"] == f"./inv rollback --to {first}"

    @pytest.mark.parametrize(
        "name", ["..", "%2e%2e%2fsequence", "20261121_101500-0001%2f..", "20261121_101500"]
    )
    def test_malformed_deployment_ids_are_refused(
        self, host: ApiHost, folder: Path, name: str
    ) -> None:
        (folder.parent / "sequence.json").write_text(json.dumps({"last": 1}))

        async def scenario(asked: Served) -> None:
            answer = await asked.ask("GET", f"{DEPLOYMENTS}/{name}", "operator")
            assert answer.status_code in (404, 422), answer.text

        host.run(scenario)

    def test_unknown_deployment_is_404(self, host: ApiHost, folder: Path) -> None:
        (problem,) = told(host, f"{DEPLOYMENTS}/20261121_101500-abcd", status=404)
        assert problem["type"] == "urn:polydev:error:deployment-not-found"
