"""The history over the API: samples, session starts, and CSV and JSON files."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from polydev.controller.app_services import Services
from polydev.controller.entities import now
from polydev.controller.host.sample import Sample
from polydev.controller.store.host_samples import PORTION
from tests.api import ApiHost, Served, api_host

PATH = "/api/admin/health/history"
# More than one portion, to test rates and starts across their boundary.
COUNT = PORTION + 7


@pytest.fixture
def host(migrated: Path, tmp_path: Path) -> ApiHost:
    return api_host(migrated, tmp_path, slots=(2, 3))


async def fill(services: Services) -> datetime:
    """Store samples, 10 s apart, the last one now; return the time of the last."""
    end = now()
    for number in range(COUNT):
        sample = Sample(
            cpu=float(number),
            disk={"/": 40.0, **({"/=late": 1.0} if number == COUNT - 1 else {})},
            rx_bytes={"eth0": 1000 * number, "vm-2": 1},
            unavailable={"temperature": 'broken, "very"'},
        )
        at = end - timedelta(seconds=10 * (COUNT - 1 - number))
        await services.samples.add(at, sample.model_dump(mode="json"))
    return end


async def start(asked: Served) -> None:
    session = await asked.start()
    await asked.services.vms.launched(session["vmId"])
    await asked.services.vms.ready(session["vmId"])


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_history_contains_session_starts(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        await fill(asked.services)
        await start(asked)
        await asked.services.samples.add(now(), {"cpu": 1.0})
        told = (await asked.ask("GET", PATH, "operator")).json()["samples"]
        assert [each["starts"] for each in told[:-1]] == [{}] * COUNT
        assert told[-1]["starts"]["boot"]["count"] == 1

    host.run(scenario)


def test_history_as_csv_file(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        await fill(asked.services)
        answer = await asked.ask("GET", f"{PATH}.csv", "operator")
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        name = answer.headers["content-disposition"]
        assert name.startswith('attachment; filename="polydev-history-')
        assert name.endswith('.csv"')
        told = rows_of(answer.text)
        assert [float(each["cpu_percent"]) for each in told] == list(range(COUNT))
        assert [each["received_bytes_per_second[eth0]"] for each in told[1:]] == ["100.0"] * (
            COUNT - 1
        )
        assert [each["disk_percent[/=late]"] for each in told] == [""] * (COUNT - 1) + ["1.0"]
        assert not any("vm-2" in name for name in told[0])
        assert told[0]["unavailable"] == 'temperature: broken, "very"'
        assert datetime.fromisoformat(told[0]["at"].replace("Z", "+00:00")) < now()

    host.run(scenario)


def test_json_file_has_the_same_rows_as_csv(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        await fill(asked.services)
        await start(asked)
        await asked.services.samples.add(now(), {"cpu": 1.0})
        answer = await asked.ask("GET", f"{PATH}.json", "operator")
        assert answer.headers["content-disposition"].endswith('.json"')
        told: list[dict[str, Any]] = json.loads(answer.text)
        (as_csv,) = [(await asked.ask("GET", f"{PATH}.csv", "operator")).text]
        shown = [
            {name: "" if value is None else str(value) for name, value in row.items()}
            for row in told
        ]
        assert shown == rows_of(as_csv)
        assert [row["starts_boot"] for row in told] == [0] * COUNT + [1]

    host.run(scenario)


@pytest.mark.parametrize(("form", "text"), [("json", "[]\n"), ("csv", "at,cpu_percent,")])
def test_history_files_without_samples(host: ApiHost, form: str, text: str) -> None:
    async def scenario(asked: Served) -> None:
        answer = await asked.ask("GET", f"{PATH}.{form}?hours=1", "operator")
        assert answer.text.startswith(text)
        assert answer.text.count("\n") == 1

    host.run(scenario)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_invalid_hours_are_422(host: ApiHost, form: str) -> None:
    async def scenario(asked: Served) -> None:
        for hours in ("0", "nan", "x", "745"):
            answer = await asked.ask("GET", f"{PATH}.{form}?hours={hours}", "operator")
            assert answer.status_code == 422, hours

    host.run(scenario)
