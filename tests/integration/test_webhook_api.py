"""Operators' API and verbs of webhooks, on an application that sends to a real receiver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import SecretStr

from polydev.controller.settings import WebhookSettings
from tests import loopback
from tests.api import Served, api_host
from tests.pages import browser
from tests.stores import copy_migrated_database
from tests.webhooks import until

SECRET = "whsec_" + "front" * 8
PATH = "/api/admin/webhooks"


def test_operators_list_resend_and_test_webhook_deliveries(tmp_path: Path) -> None:
    copy_migrated_database(tmp_path / "controller.sqlite3")
    status = 500

    def answer(_: loopback.Asked) -> loopback.Answer:
        return loopback.Answer(status, b"no <b>database</b>")

    async def scenario(asked: Served) -> None:
        nonlocal status

        async def got(path: str) -> Any:
            return (await asked.ask("GET", f"{PATH}/{path}", "operator")).json()

        async def posted(path: str, expected: int) -> Any:
            answer = await asked.ask("POST", f"{PATH}/{path}", "operator")
            assert answer.status_code == expected, answer.text
            return answer.json()

        session = await asked.start()
        asked.services.begin()

        async def was_tried() -> bool:
            found = (await got("deliveries"))["deliveries"]
            return bool(found) and found[0]["attempts"] >= 1

        await until(was_tried)
        (delivery,) = (await got("deliveries"))["deliveries"]
        assert (delivery["state"], delivery["type"]) == ("waiting", "session.created")
        assert (delivery["status"], delivery["problem"]) == (
            500,
            "it answered 500: no <b>database</b>",
        )
        assert delivery["message"]["data"]["sessionId"] == session["id"]
        one = f"deliveries/{delivery['id']}"
        assert (await got(one))["webhookId"] == delivery["webhookId"]
        (endpoint,) = (await got("endpoints"))["endpoints"]
        assert endpoint["url"] == f"{front.url}/hook", "without its query"
        assert (endpoint["waiting"], endpoint["wantsMore"]) == (1, True)
        assert endpoint["failingSince"] == delivery["timestamp"]

        page = await (await browser(asked, "operator")).ask("GET", "/admin/alerts")
        assert "it answered 500: no &lt;b&gt;database" in page.text
        assert page.text.count('badge warn">waiting') == 1

        trial = await posted("endpoints/front/try", 200)
        assert (trial["taken"], trial["status"], trial["said"]) == (
            False,
            500,
            "no <b>database</b>",
        )
        status = 200
        assert (await posted("endpoints/front/try", 200))["taken"]
        assert (await posted(f"{one}/resend", 202))["state"] == "waiting"

        async def is_delivered() -> bool:
            return bool((await got(one))["state"] == "delivered")

        await until(is_delivered)
        assert (await got("deliveries?state=failed"))["deliveries"] == []
        assert (await got("deliveries?endpoint=front&limit=1"))["next"] is None
        unknown = await posted("endpoints/side/try", 404)
        assert unknown["hint"] == "its endpoints are front"
        assert (await posted("deliveries/99/resend", 404))["type"].endswith("delivery-not-found")

    folder = tmp_path / "host"
    folder.mkdir()
    with loopback.served(answer) as front:
        endpoint: dict[str, Any] = {"name": "front", "url": f"{front.url}/hook?key=1"}
        endpoint |= {"events": ["session.created"]}
        host = api_host(
            tmp_path / "controller.sqlite3",
            folder,
            slots=(2,),
            webhook_secrets=SecretStr(f"front {SECRET}"),
            webhooks=WebhookSettings.model_validate({"endpoints": [endpoint]}),
        )
        host.run(scenario)
