"""A template on a deployed host: made in a sandbox, and handed to the starter of VMs."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import requests

from polydev.controller.entities import BEING_MADE
from polydev.errors import CommandError
from polydev.lab import run_inside
from polydev.vm.template_client import FILES
from tests.hosts import TOOL, DeployedHost
from tests.operators import Operator
from tests.pooled_host import FOLDER, HOLDER, MAKER, POOLED, STORE
from tests.sessions import (
    PATIENCE_SECONDS,
    Operated,
    controller,
    inside_vm,
    news_until,
    operated,
    primed,
    see_start_page,
    wait_for,
)
from tests.viewer import open_websocket, viewer_url
from tests.walls import confining_properties, output_with

SLOT = 2
TAKEN_AGAIN = 6
# POLYDEV_CYCLES=200 is the long form, POLYDEV_SEED another course of it.
SEED = int(os.environ.get("POLYDEV_SEED", "20261129"))
CYCLES = int(os.environ.get("POLYDEV_CYCLES", "5"))
KILLS = ("nobody", "controller", "holder", "a VM of the pool", "its VM")
RFB = b"RFB 003.008\n"
BIN = "/opt/master-controller/current/venv/bin"
LIST = f"{BIN}/master-controller templates list --config /etc/master-controller/config.yaml"
BROKEN = "b2" * 32
# An image whose root filesystem is none, as it arrives: its template cannot be made.
BREAK = """
import hashlib, json, pathlib, sys
store, whole, broken = pathlib.Path(sys.argv[1]), *sys.argv[2:]
source, place = store / "images" / whole, store / "incoming" / broken
place.mkdir(parents=True)
sums = {}
for name in ("rootfs.ext4", "vmlinux", "initrd.img", "cmdline"):
    data = bytes(1 << 20) if name == "rootfs.ext4" else (source / name).read_bytes()
    (place / name).write_bytes(data)
    sums[name] = {"sha256": hashlib.sha256(data).hexdigest()}
(place / "record.json").write_text(json.dumps({"digest": broken, "files": sums}))
"""
# Operations tried with each descriptor, all of which must be refused.
WRITE = """
import json, mmap, os, sys
from polydev.vm.template_client import fetch
def tried(descriptor, name):
    path = f"/proc/self/fd/{descriptor}"
    ways = {
        "write": lambda: os.pwrite(descriptor, b"x", 0),
        "cut": lambda: os.ftruncate(descriptor, 0),
        "map": lambda: mmap.mmap(descriptor, 4096),
        "write opened again": lambda: os.pwrite(os.open(path, os.O_RDWR), b"x", 0),
    }
    for way, do in ways.items():
        try:
            do()
        except PermissionError:
            continue
        yield f"{name}: {way}"
found = fetch(sys.argv[1])
done = [each for name, descriptor in enumerate(found) for each in tried(descriptor, name)]
print(json.dumps({"files": len(found), "user": os.getuid(), "done": done}))
"""
# Things within reach of the maker's guest, and of code that escapes from it into QEMU.
WALLS = """
import json, os, socket, subprocess, sys
from polydev.controller.machines.template_maker import add_tap
def tried(do):
    try:
        do()
    except OSError as error:
        return error.strerror
def ip(*words):
    return json.loads(subprocess.check_output(["ip", "-json", *words]))
add_tap()
folder, store, host = sys.argv[1:]
print(json.dumps({
    "links": sorted(each["ifname"] for each in ip("link")),
    "routes": [each["dst"] for each in ip("route")],
    "host": tried(lambda: socket.create_connection((host, 53), 2)),
    "template": tried(lambda: open(folder + "/.tried", "w").close()),
    "image": tried(lambda: os.mkdir(store + "/images/tried")),
    "secrets": tried(lambda: os.listdir("/etc/master-controller/secrets")),
    "database": tried(lambda: os.listdir("/var/lib/master-controller")),
}))
os.unlink(folder + "/.tried")
"""


def test_template_maker_has_no_access_to_network_and_secrets(deployed: DeployedHost) -> None:
    properties = confining_properties(deployed.inside(f"systemctl cat {MAKER}"), 0)
    words = (f"{BIN}/python", "-c", WALLS, FOLDER, STORE, "192.168.100.1")
    assert json.loads(output_with(deployed, properties, *words)) == {
        "links": ["lo", "tap0"],
        "routes": ["172.16.0.0/30"],
        "host": "Network is unreachable",
        "template": None,
        "image": "Read-only file system",
        "secrets": "Permission denied",
        "database": "Permission denied",
    }


def test_deployment_builds_template_open_to_vm_users(templates_host: DeployedHost) -> None:
    host = templates_host
    report = controller(host, "templates report")
    assert report["build"]["state"] == "running", report
    assert report["bootsBecause"] == BEING_MADE
    made = Operator(host).answer("template.build")
    assert made["imageDigest"] == host.golden_image().name
    said = host.journal(f"-b -u {MAKER}")
    (template,) = json.loads(host.inside(LIST))
    assert (template["key"], template["image_digest"]) == (made["key"], made["imageDigest"]), said
    # After each that was made it looks again.
    last = [json.loads(line) for line in said.splitlines() if line.startswith("{")][-1]
    assert (last["enabled"], last["made"], last["key"]) == (True, False, template["key"])

    properties = confining_properties(host.inside(f"systemctl cat microvm@{SLOT}.service"), SLOT)
    user = int(host.inside(f"id -u polydev-vm-{SLOT}"))
    client = output_with(host, properties, f"{BIN}/python", "-c", WRITE, template["key"])
    assert json.loads(client) == {"files": len(FILES), "user": user, "done": []}
    assert host.plan().changing == []


def test_sessions_of_two_users_get_different_clones(templates_host: DeployedHost) -> None:
    """Each with its own identity, ready at once, and seen through the controller."""
    host = templates_host
    host.inside(f"systemctl start --wait {MAKER}")
    (template,) = json.loads(host.inside(LIST))
    with operated(host) as service:
        base = service.user.http.base_url
        started = [service.user.start("claude"), service.user.start("codex")]
        for each in started:
            news = news_until(service.user, each["id"], "vm_created")
            assert [told["stage"] for told in news if "stage" in told] == ["ready"]
        boots = [service.user.session(each["id"])["boot"] for each in started]
        assert {boot["template"] for boot in boots} == {template["key"]}
        receipts = [boot["receipt"] for boot in boots]
        for name in ("vmId", "sessionId", "hostname", "machineId", "bootId", "random"):
            assert receipts[0][name] != receipts[1][name]
        for session in started:
            vm = service.user.vm(session["id"])
            said = inside_vm(service, vm["vmIP"])
            assert (said["session_id"], said["vm_id"]) == (session["id"], vm["vmId"])
            seen = see_start_page(viewer_url(base, session["id"]), service.user.token)
            asyncio.run(asyncio.wait_for(seen, PATIENCE_SECONDS))
            assert service.user.end(session["id"])["status"] == "terminated"
        service.wait_until_nothing_held()
        # In a slot that another clone has only just left.
        for _ in range(TAKEN_AGAIN):
            session = service.user.start("claude")
            news_until(service.user, session["id"], "vm_created")
            greeting = asyncio.run(greeted(viewer_url(base, session["id"]), service.user.token))
            assert greeting == RFB
            service.user.end(session["id"])
            service.wait_until_nothing_held()


def test_bench_start_and_burst_report_ratios_to_bare_resume(templates_host: DeployedHost) -> None:
    templates_host.inside(f"systemctl start --wait {MAKER}")
    operator = Operator(templates_host)
    found = operator.answer("bench.start", "--starts", "1", "--cold", "0")
    assert [len(found["seconds"][kind]) for kind in ("bare", "clone", "cold")] == [1, 1, 0]
    assert found["clone_start_to_bare_resume"] > 0
    assert found["clone_first_frame_seconds"] > found["clone_start_seconds"]
    assert found["missing"]["cold_to_clone_start"] == "no cold boot was requested"
    burst = operator.answer("bench.burst", "--size", "2")
    assert (burst["refused"], burst["kinds"]) == (0, ["clone", "clone"])
    assert burst["last_to_bare_resumes"] > 0
    users = controller(templates_host, "user list")
    assert [each for each in users if each["name"] == "bench"] == []


def test_failed_template_build_keeps_the_former_template_serving(
    templates_host: DeployedHost,
) -> None:
    host, operator = templates_host, Operator(templates_host)
    golden = operator.answer("template.build")
    assert not golden["made"]
    with operated(host) as service:
        operator = replace(operator, token=service.admin.token)
        try:
            run_inside(host.lab, ["python3", "-c", BREAK, STORE, golden["imageDigest"], BROKEN])
            host.inside(f"{TOOL} image add --digest {BROKEN}")
            host.inside(f"{TOOL} image golden --digest {BROKEN}")
            session = service.user.start("claude")
            news_until(service.user, session["id"], "vm_created")
            assert service.user.session(session["id"])["boot"]["template"] == golden["key"]
            vm = service.user.vm(session["id"])
            assert vm["imageDigest"] == golden["imageDigest"]
            assert inside_vm(service, vm["vmIP"])["session_id"] == session["id"]

            failed = operator("template.build", in_json=False)
            assert failed.status == 1
            assert f"cannot make the template of image {BROKEN[:12]}: " in failed.stderr
            report = operator.answer("templates")
            assert (report["goldenImage"], report["serving"]) == (BROKEN, golden["key"])
            assert report["build"]["state"] == "failed"
            assert report["build"]["detail"] in failed.stderr
            assert operator.answer("template.show")["imageDigest"] == golden["imageDigest"]
            alert = wait_for("an alert", lambda: template_missing(service))
            assert f"still resumed from image {golden['imageDigest'][:12]}" in alert["message"]
            service.user.end(session["id"])
        finally:
            host.inside(f"{TOOL} image golden --digest {golden['imageDigest']}")
            host.inside(f"rm -rf {STORE}/images/{BROKEN} {STORE}/incoming/{BROKEN}")
        wait_for("no alert", lambda: not template_missing(service))
        service.wait_until_nothing_held()


def template_missing(service: Operated) -> dict[str, Any] | None:
    standing = service.admin.call("GET", "/api/admin/alerts")["standing"]
    return next((each for each in standing if each["rule"] == "template_missing"), None)


def test_sessions_take_paused_vms_of_the_pool(pooled: DeployedHost) -> None:
    host = pooled
    with operated(host) as service:
        base = service.user.http.base_url
        before = {vm["vmId"]: vm for vm in primed(service, POOLED)}
        cpu = {vm_id: settled_cpu_time(host, vm["slot"]) for vm_id, vm in before.items()}
        session = service.user.start("claude")
        news_until(service.user, session["id"], "vm_created")
        greeting = asyncio.run(greeted(viewer_url(base, session["id"]), service.user.token))
        assert greeting == RFB
        taken = before.pop(session["vmId"])
        (other,) = before.values()
        assert cpu_time(host, other["slot"]) == cpu[other["vmId"]], "what is paused runs nothing"
        boot = service.user.session(session["id"])["boot"]
        assert (boot["receipt"]["vmId"], boot["receipt"]["sessionId"]) == (
            taken["vmId"],
            session["id"],
        )
        said = inside_vm(service, taken["vmIP"])
        assert (said["session_id"], said["vm_id"]) == (session["id"], taken["vmId"])
        asyncio.run(
            asyncio.wait_for(
                see_start_page(viewer_url(base, session["id"]), service.user.token),
                PATIENCE_SECONDS,
            )
        )
        assert other["vmId"] in {vm["vmId"] for vm in primed(service, POOLED)}
        # Nobody looks any more, until somebody does.
        wait_for("the pause", lambda: service.user.vm(session["id"])["pausedAt"])
        greeting = asyncio.run(greeted(viewer_url(base, session["id"]), service.user.token))
        assert greeting == RFB
        assert service.user.vm(session["id"])["pausedAt"] is None
        service.user.end(session["id"])
        service.wait_until_released(taken["vmId"])


def test_sessions_keep_distinct_identities_after_random_kills(pooled: DeployedHost) -> None:
    """Sessions start and end while processes are killed at random moments of their start."""
    chance = random.Random(SEED)
    receipts: list[dict[str, Any]] = []
    with operated(pooled) as service, ThreadPoolExecutor(1) as beside:
        for cycle in range(CYCLES):
            victim, after = chance.choice(KILLS), chance.uniform(0, 0.5)
            headers = {"Idempotency-Key": f"{SEED}-{cycle}", **service.user.headers}
            body = {"userId": service.user.user_id, "provider": "claude"}
            killing = beside.submit(kill, service, victim, after)
            started = answered(service, "POST", "/api/auth/start", headers=headers, json=body)
            killed = killing.result()
            path = f"/api/auth/session/{started['id']}"
            session, said = settled(service, path)
            say = f"seed {SEED}, cycle {cycle}: {victim} after {after:.3f} s: {session}"
            if session["endedAt"] is None:
                assert (said["vm_id"], said["session_id"]) == (session["vmId"], session["id"]), say
                receipts += checked_receipts(session, say)
                answered(service, "DELETE", path, headers=service.user.headers)
            else:
                # A VM that was of the pool when it was chosen may be the session's by now.
                assert killed == session["vmId"], say
                assert session["reason"], say
            service.wait_until_released(session["vmId"])
    assert len(receipts) > CYCLES / 2
    for name in ("vmId", "sessionId", "hostname", "machineId", "bootId", "secretSha256", "random"):
        assert len({receipt[name] for receipt in receipts}) == len(receipts), name


def kill(service: Operated, victim: str, after: float) -> str | None:
    """Kill the victim after some time; return the id of the VM that was killed, if it was one."""
    time.sleep(after)
    if victim == "controller":
        service.kill_controller()
    elif victim == "holder":
        service.host.inside(f"systemctl kill --signal=KILL {HOLDER}", check=False)
    elif victim != "nobody":
        vms = answered(service, "GET", "/api/vm", headers=service.admin.headers)["vms"]
        for vm in vms:
            if vm["pooled"] == (victim == "a VM of the pool"):
                unit = f"microvm@{vm['slot']}.service"
                # It may have ended by itself.
                kill_it = f"systemctl kill --kill-who=main --signal=KILL {unit}"
                service.host.inside(kill_it, check=False)
                return str(vm["vmId"])
    return None


def answered(service: Operated, method: str, path: str, **words: Any) -> dict[str, Any]:
    """Return the controller's answer, as soon as one comes."""

    def ask() -> dict[str, Any] | None:
        try:
            answer = service.user.http.request(method, path, **words)
        except requests.RequestException:
            return None
        assert answer.status_code < 300, answer.text
        found: dict[str, Any] = answer.json()
        return found

    return wait_for(f"an answer to {method} {path}", ask)


def settled(service: Operated, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Wait until the session is over or its VM reports its identity; return both."""

    def look() -> tuple[dict[str, Any], dict[str, Any]] | None:
        found = answered(service, "GET", path, headers=service.user.headers)
        if found["endedAt"]:
            return found, {}
        if found["status"] != "vm_created":
            return None
        try:
            return found, inside_vm(service, found["browserIP"])
        except CommandError:  # it was killed just now
            return None

    return wait_for(f"{path} to be up", look)


def checked_receipts(session: dict[str, Any], say: str) -> list[dict[str, Any]]:
    """The session's receipt, where its VM is a clone."""
    boot = session["boot"]
    if boot["template"] is None:
        assert boot["bootsBecause"], say
        return []
    receipt = boot["receipt"]
    assert (receipt["vmId"], receipt["sessionId"]) == (session["vmId"], session["id"]), say
    return [receipt]


def cpu_time(host: DeployedHost, slot: int) -> int:
    """Return the CPU time of a slot's VM, in microseconds."""
    (line, *_) = host.inside(f"systemctl show -P CPUUsageNSec microvm@{slot}.service").splitlines()
    return int(line) // 1000


def settled_cpu_time(host: DeployedHost, slot: int) -> int:
    """Wait until a slot's VM uses no CPU time; return what it has used.

    QEMU may have yet to notice that the controller has hung up after the pause.
    """
    last = -1

    def look() -> int | None:
        nonlocal last
        last, before = cpu_time(host, slot), last
        return last if last == before else None

    return wait_for("a VM that uses no CPU time", look)


async def greeted(url: str, token: str) -> object:
    """The first message of a session's screen."""
    async with open_websocket(url, token) as viewer:
        return await viewer.recv()
