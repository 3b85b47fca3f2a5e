"""A host with records of images, deployments, alerts and webhooks, for the pages of these.

Texts that a build, an operator or a guest chooses have markup in them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polydev.controller.entities import now
from polydev.controller.host import deployments
from polydev.controller.store import tables
from polydev.controller.webhook_events import body_of, new_message_id
from polydev.hosttool import deployment_records
from polydev.hosttool.paths import Paths
from polydev.image.sbom import sbom_json
from polydev.image.store import ImageStore
from polydev.image_layout import ROOTFS, SBOM
from polydev.image_record import ImageRecord, LayerEntry, Package, SpecResult
from tests.images import record_of, verification
from tests.relays import Screens, screens
from tests.vms import IMAGE_DIGEST

SCRIPT = "<script>window.ran = 1</script><img src=x onerror=window.ran=1>"
PACKAGES = {
    "base-files": "12.4+deb12u12",
    "chromium": "142.0.7444.59-1~deb12u1",
    "dbus": "1.14.10-1~deb12u1",
    "fonts-liberation": "1:1.07.4-11",
    "libgtk-3-0": "3.24.38-2~deb12u3",
    "linux-image-amd64": "6.1.158-1",
    "openbox": "3.6.1-10",
    "systemd": "252.39-1~deb12u1",
    "tigervnc-standalone-server": "1.12.0+dfsg-8",
    "util-linux": "2.38.1-5+deb12u3",
}
TOOLS = {"@anthropic-ai/claude-code": "2.1.143", "@google/gemini-cli": "0.21.0"}
SPECS = {
    "test_boot.py": ("test_ready_within_its_deadline", "test_no_unit_failed"),
    "test_browser.py": ("test_chromium_shows_its_start_page", "test_chromium_is_sandboxed"),
    "test_network.py": ("test_the_guest_reaches_no_private_network", "test_names_are_resolved"),
}


def packages_of(**changed: str) -> list[Package]:
    debs = {**PACKAGES, **{name.replace("_", "-"): version for name, version in changed.items()}}
    found = [Package(kind="deb", name=name, version=each) for name, each in sorted(debs.items())]
    return [*found, *(Package(kind="npm", name=n, version=v) for n, v in TOOLS.items())]


def report(markup: str, *, failed: bool = False) -> list[SpecResult]:
    named = [(f"{module}::{name}", name) for module, names in SPECS.items() for name in names]
    return [
        SpecResult(
            name=full,
            outcome="failed" if failed and name == "test_no_unit_failed" else "passed",
            seconds=0.1 + len(name) / 100,
            message=f"nginx.service failed {markup}" if failed and "unit" in name else "",
        )
        for full, name in named
    ]


@dataclass
class RecordedHost:
    """`images` are the golden one, the one before, one that failed, and one without a record."""

    made: Screens
    store: ImageStore
    paths: Paths
    images: dict[str, str]
    deployments: dict[str, str]
    markup: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.made.port}"

    def add_image(self, name: str, age: timedelta, *, failed: bool = False, **debs: str) -> None:
        found = verification(not failed).model_copy(
            update={
                "at": now() - age,
                "hypervisor": "QEMU emulator version 7.2.22",
                "boot_timings_seconds": {
                    "kernel": 2.1,
                    "init": 6.4,
                    "network": 11.8,
                    "ready": 23.9,
                },
                "specs": report(self.markup, failed=failed),
            }
        )
        made = record_of(name, now() - age, None)
        size = {"allocated_bytes": 1_700_000_000 + len(name) * 7_300_000}
        files = {**made.files, ROOTFS: made.files[ROOTFS].model_copy(update=size)}
        record = made.model_copy(
            update={
                "files": files,
                "kernel_version": "6.1.0-41-amd64",
                "layers": [
                    LayerEntry(name=each, id=f"{number}{name.encode().hex()}"[:16], seconds=None)
                    for number, each in enumerate(("base", "desktop", "browser", "tools"))
                ],
                "packages": packages_of(**debs),
                "builder": {"host": "build-1", "python": "3.11.2", "note": f"by Ada {self.markup}"},
                "content_bytes": 1_610_000_000 + len(name) * 7_300_000,
                "verification": found,
            }
        )
        self.put_image(name, record)

    def put_image(self, name: str, record: ImageRecord) -> None:
        folder = self.store.path(record.digest)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "record.json").write_text(record.model_dump_json())
        (folder / SBOM).write_text(sbom_json(record, "bookworm"))
        for file in record.files:
            (folder / file).touch()
        self.images[name] = record.digest

    def make_golden(self, name: str) -> None:
        folder = self.store.root / "promotions"
        folder.mkdir(exist_ok=True)
        digest = self.images[name]
        for left in (folder / "000009", self.store.golden_link):
            left.unlink(missing_ok=True)
        (folder / "000009.json").write_text(json.dumps({"number": 9, "digest": digest}))
        (folder / "000009").symlink_to(f"../images/{digest}")
        self.store.golden_link.symlink_to("promotions/000009/rootfs.ext4")

    def deploy(self, name: str, age: timedelta, status: str = "succeeded", **words: Any) -> None:
        at = now() - age
        number = len(self.deployments) + 1
        made = f"{at:%Y%m%d_%H%M%S}-{number:04x}c0de"
        gate = {
            "ok": status == "succeeded",
            "checks": [
                {"name": "units", "ok": True, "detail": "14 active"},
                {"name": "image", "ok": True, "detail": "golden 4f1d0c2b9a7e"},
                {
                    "name": "controller",
                    "ok": status == "succeeded",
                    "detail": f"200, release {made}" if status == "succeeded" else "no answer",
                },
            ],
        }
        record = {
            "id": made,
            "kind": "deploy",
            "status": status,
            "target": "all",
            "host": "browsers-1.example.com",
            "who": f"ada@desk {self.markup}" if name == "script" else "ada@desk",
            "commit": f"{number:04x}c0de",
            "startedAt": at.isoformat(),
            "finishedAt": (at + timedelta(seconds=71)).isoformat(),
            "state": made if status == "succeeded" else words.get("previous"),
            "previous": None,
            "backup": True,
            "changes": 3,
            "operations": ["golden image 4f1d0c2b9a7e", "release", "handover"],
            "gate": gate,
            **words,
        }
        deployment_records.write(self.paths, record)
        self.deployments[name] = made


# No recorded delivery is due, so nothing is sent.
WEBHOOKS: dict[str, Any] = {
    "webhook_secrets": "front-end whsec_" + "front" * 8,
    "webhooks": {"endpoints": [{"name": "front-end", "url": "http://127.0.0.1:9/hook"}]},
}


@asynccontextmanager
async def recorded_hosts(
    root: Path, packed_assets: Path, patch: pytest.MonkeyPatch, markup: str = SCRIPT
) -> AsyncIterator[RecordedHost]:
    """`markup` stands in every text that somebody chose."""
    (root / "host").mkdir()
    paths = Paths(home=root / "home")
    patch.setattr(deployments, "FOLDER", paths.records)
    async with screens(root / "host", packed_assets=packed_assets, **WEBHOOKS) as made:
        store = ImageStore(made.services.settings.image_store)
        shutil.rmtree(store.path(IMAGE_DIGEST))
        host = RecordedHost(made, store, paths, {}, {}, markup)
        _add_images(host)
        _add_deployments(host)
        await _add_alerts(made, markup)
        await _add_deliveries(made, markup)
        yield host


def _add_images(host: RecordedHost) -> None:
    host.add_image("before", timedelta(days=9), chromium="141.0.7390.122-1~deb12u1", less="590-2.1")
    host.add_image("failed", timedelta(days=3), failed=True)
    host.add_image("golden", timedelta(hours=20))
    host.make_golden("golden")
    damaged = host.store.path("d4" * 32)
    damaged.mkdir()
    (damaged / "record.json").write_text(json.dumps({"digest": host.markup}))
    host.images["damaged"] = damaged.name


def _add_deployments(host: RecordedHost) -> None:
    host.deploy("first", timedelta(days=12), changes=62)
    first = host.deployments["first"]
    host.deploy("script", timedelta(days=9), previous=first, changes=4)
    previous = host.deployments["script"]
    host.deploy(
        "failed",
        timedelta(days=3),
        "rolled-back",
        previous=previous,
        reason=f"the controller does not answer {host.markup}",
        undone={"restored": {}, "gate": {"ok": True, "checks": []}},
    )
    host.deploy("newest", timedelta(hours=19), previous=previous, changes=3)
    (host.paths.records / "20260101_000000-dead.json").write_text("{ half")


async def _add_alerts(made: Screens, markup: str) -> None:
    alerts = made.services.alerts
    await alerts.raise_("memory", "host", "warning", "memory is at 84.2 %", 84.2)
    await alerts.raise_("no_slots", "host", "warning", "8 of 8 slots are in use", 0)
    await alerts.clear("no_slots", "host")
    await alerts.raise_("deploy_failed", "host", "warning", f"deployment failed {markup}", None)
    await alerts.clear("deploy_failed", "host")
    await alerts.raise_("disk", "/var", "critical", f"disk /var is at 95 % {markup}", 95)


async def _add_deliveries(made: Screens, markup: str) -> None:
    at = now()
    ends: dict[str, dict[str, Any]] = {
        "delivered": {"ended_at": at, "status": 204},
        "failed": {"ended_at": at, "status": 500, "problem": f"it answered 500: {markup}"},
        "waiting": {"due_at": at + timedelta(hours=1), "problem": "no answer within 20 s"},
    }
    async with made.services.database.writing() as connection:
        for number, (state, end) in enumerate(ends.items(), start=1):
            event = {"number": number, "id": new_message_id(), "type": "session.ready", "at": at}
            event |= {"body": body_of("session.ready", at, {}), "queued_at": at}
            await connection.execute(sa.insert(tables.webhook_events).values(event))
            delivery = {"event_number": number, "endpoint": "front-end", "state": state}
            delivery |= {"attempts": 1, "attempted_at": at, **end}
            await connection.execute(sa.insert(tables.webhook_deliveries).values(delivery))
