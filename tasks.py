"""The verbs up, down, where, check and test, and the collection of all verbs of `verbs/`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.context import Context

from polydev.cli import answer, edge, task
from polydev.errors import ConfigError
from polydev.settings import Settings
from verbs import (
    alerts,
    bench,
    credentials,
    database,
    deploy,
    deployments,
    docs,
    doctor,
    golden,
    host_shell_and_logs,
    lab,
    open_and_health,
    providers,
    sessions,
    templates,
    usage,
    users_and_tokens,
    vms,
    webhooks,
)
from verbs.api_connection import access_fields, controller_url, lab_access, page_fields
from verbs.deploy import described_host
from verbs.golden import open_store, verify
from verbs.paths_and_help import (
    JSON_HELP,
    LAB_INVENTORY,
    LOGS,
    RECIPE,
    RECIPE_HELP,
    ROOT,
    SPECS,
    lab_name,
)

if TYPE_CHECKING:
    from polydev.progress import Steps

TEST_KINDS = ("unit", "integration", "e2e", "bench")
# pytest-xdist; tests/conftest.py says which tests share a lane, and in which order.
LANES = ("-n", "4", "--dist", "loadscope", "--no-loadscope-reorder")
NO_TESTS = 5


@task(
    help={
        "recipe": RECIPE_HELP,
        "internet": "let the VM reach the internet; it then reaches this machine's loopback too",
        "lab": "deploy the image to the lab; --no-lab skips this",
        "json": JSON_HELP,
    }
)
@edge
def up(
    context: Context,
    recipe: str = str(RECIPE),
    internet: bool = False,
    lab: bool = True,
    json: bool = False,
) -> None:
    """Build and verify the golden image, start a VM of it here, and deploy it to a lab.

    The host is a lab: a real Debian with systemd in a container, reached over SSH.
    """
    from polydev.image.build import BuildOptions, build
    from polydev.image.recipe import load_recipe
    from polydev.image.verify import VerifyOptions, verify
    from polydev.local_vm import bring_up
    from polydev.progress import Steps

    if lab:
        _require_commit()
    settings, store, steps = Settings.from_environment(), open_store(), Steps()
    built = build(load_recipe(Path(recipe)), settings, store, steps, BuildOptions())
    record = built.record
    if record.verification is None or not record.verification.passed:
        record = verify(record.digest, settings, store, SPECS, steps, VerifyOptions())
    promoted = store.golden() != record.digest
    if promoted:
        with steps.step("promotion"):
            store.promote(record.digest)
    with steps.step("VM of the golden image") as step:
        vm, started = bring_up(
            record.digest,
            settings,
            store,
            lambda stage: step.say(f"boot stage {stage}"),
            outbound=internet,
            on_busy=lambda wait: steps.note(f"the machine is busy: {wait}"),
        )
    deployed = _deploy_lab(steps) if lab else None
    answer(
        {
            "image": record.digest,
            "built": built.changed,
            "promoted": promoted,
            "started": started,
            "vmId": vm.vm_id,
            **vm.addresses(),
            **(deployed or {}),
        },
        as_json=json,
        text=f"image {record.digest[:12]} runs; open its desktop in a web browser:\n"
        f"  {vm.config.ports.viewer_url}\n"
        + (_access_text(deployed) if deployed else "")
        + f"end {'both' if deployed else 'it'} with ./inv down",
    )


def _require_commit() -> None:
    """Raise ConfigError before anything is built if a deployment could not be named."""
    from polydev.deployment_id import require_commit

    try:
        require_commit(ROOT)
    except ConfigError as error:
        error.hint = f"{error.hint}; or leave the lab out: ./inv up --no-lab"
        raise


def _deploy_lab(steps: Steps) -> dict[str, Any]:
    """Start the lab and deploy the golden image to it."""
    from polydev.deployment import deploy_and_rollback
    from polydev.lab import up

    made = up(lab_name(), Settings.from_environment(), steps)
    project, host = described_host(LAB_INVENTORY, "")
    record = deploy_and_rollback.deploy(
        project, host, deploy_and_rollback.DeployOptions(), steps, LOGS
    )
    with steps.step(f"{host.name}: users"):
        users = lab_access(made)
    return {
        "lab": made.name,
        "controller": controller_url(made.address),
        **access_fields(made, users),
        **page_fields(made, users),
        "deployment": {
            "id": record.id,
            "host": record.host,
            "status": record.status,
            "changes": record.changes,
        },
    }


def _access_text(deployed: dict[str, Any]) -> str:
    return (
        "to start sessions in a web browser: a link that signs in once, within two minutes:\n"
        f"  {deployed['page']}\n"
        "to see that host: its dashboard, where ./inv open signs you in:\n"
        f"  {deployed['dashboard']}\n"
        'to start sessions by curl, as README.md shows under "A session":\n'
        f"  {deployed['url']}\n"
        f"  user {deployed['userId']}, token {deployed['token']}\n"
    )


@task(help={"lab": "end the lab too; --no-lab leaves it running", "json": JSON_HELP})
@edge
def down(context: Context, lab: bool = True, json: bool = False) -> None:
    """End what up started; images are kept."""
    from polydev.lab import down
    from polydev.local_vm import take_down

    settings = Settings.from_environment()
    ended = take_down(settings)
    lab_ended = lab and down(lab_name(), settings)
    what = [name for name, was in (("the VM", ended), (f"lab {lab_name()}", lab_ended)) if was]
    text = f"ended {' and '.join(what)}" if what else "nothing was running"
    answer({"ended": ended, "labEnded": lab_ended}, as_json=json, text=text)


@task(help={"json": JSON_HELP})
@edge
def where(context: Context, json: bool = False) -> None:
    """Show the addresses of what is running."""
    from polydev.client.controller_api import ControllerRefused, ControllerUnreachable
    from polydev.client.lab_access import stored_access
    from polydev.lab import find as find_lab
    from polydev.local_vm import find

    settings = Settings.from_environment()
    vm, lab = find(settings), find_lab(lab_name(), settings)
    found: dict[str, Any] = {"running": vm is not None}
    if vm is not None:
        found |= {"vmId": vm.vm_id, "image": vm.image_digest, **vm.addresses()}
    if lab is not None:
        found |= {"lab": lab.name, "controller": controller_url(lab.address)}
        users = stored_access(lab.folder)
        if users:
            found |= access_fields(lab, users)
            with suppress(ControllerUnreachable, ControllerRefused):  # the other fields are known
                found |= page_fields(lab, users)
    text = "\n".join(f"{name:<11}{value}" for name, value in found.items())
    answer(found, as_json=json, text=text if vm or lab else "nothing is running: ./inv up")


@task(help={"fix": "first let ruff fix and format what it can"})
@edge
def check(context: Context, fix: bool = False) -> None:
    """Check formatting, lint, types and import contracts."""
    from polydev.processes import run_lines

    tools = Path(sys.executable).parent
    commands = [["ruff", "format", "."], ["ruff", "check", "--fix", "."]] if fix else []
    commands += [["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]]
    commands.append(["lint-imports"])
    for name, *words in commands:
        print(" ".join([name, *words]), flush=True)
        run_lines([tools / name, *words], lambda line: print(" ", line, flush=True), cwd=ROOT)
    print("all checks passed")


@task(
    help={
        "only": f"run a part: {', '.join(TEST_KINDS)}, spec, or a word of test files' names, such "
        "as login; several with commas",
        "k": "run only tests whose name matches (pytest's -k)",
    }
)
@edge
def test(context: Context, only: str = "", k: str = "") -> None:  # noqa: PT028  (a verb)
    """Run the checks and all tests, or a part of them.

    Tests run in four lanes side by side, since they mostly wait for guests and hosts. Benches run
    after them and alone, since they measure.
    """
    from polydev.processes import call

    parts = [part.strip() for part in only.split(",") if part.strip()]
    files = {part: tests_of(part) for part in parts if part != "spec"}
    if unknown := [part for part, found in files.items() if not found]:
        raise ConfigError(
            f"no such tests: {', '.join(unknown)}",
            f"one of {', '.join(TEST_KINDS)}, spec, or a word of a test file's name",
        )
    # Write bytecode: hundreds of processes import the same modules.
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""
    if not parts:
        with _tests_compiled_meanwhile():
            check(context)
        files = {kind: tests_of(kind) for kind in TEST_KINDS}
    if "spec" in parts:
        verify(context, "latest")
    pytest = [sys.executable, "-m", "pytest", *(["-k", k] if k else [])]
    wanted = sorted({file for found in files.values() for file in found})
    benches = [file for file in wanted if file.startswith("tests/bench")]
    in_lanes = [file for file in wanted if file not in benches]
    statuses = []
    if in_lanes:
        statuses.append(call([*pytest, *LANES, *in_lanes], cwd=ROOT))
    if benches:
        statuses.append(call([*pytest, *benches], cwd=ROOT))
    # A name that matches no test in one of the two calls is a failure only if both found none.
    some_ran = any(status != NO_TESTS for status in statuses)
    failed = [status for status in statuses if status and not (some_ran and status == NO_TESTS)]
    raise SystemExit(failed[0] if failed else 0)


@contextmanager
def _tests_compiled_meanwhile() -> Iterator[None]:
    """Collect all tests in the background: otherwise each lane compiles all of them by itself."""
    from polydev.processes import end_group, spawn

    words = ["-m", "pytest", "--collect-only", "-qq", "tests"]
    process = spawn([sys.executable, *words], cwd=ROOT, stdout=DEVNULL, stderr=DEVNULL)
    try:
        yield
        process.wait()  # the lanes tell what cannot be collected
    finally:
        end_group(process)


def tests_of(part: str) -> list[str]:
    """Return the folder of a kind of test, or all test files that have this word in their names."""
    if part in TEST_KINDS:
        return [f"tests/{part}"]
    names = [f"tests/{kind}/**/test_*.py" for kind in TEST_KINDS]
    found = [file for name in names for file in ROOT.glob(name) if part in file.stem.split("_")]
    return [str(file.relative_to(ROOT)) for file in found]


namespace = Collection(up, down, where)
for verb in (deploy.deploy, deploy.backup, deploy.rollback, deployments.deployments, deploy.drift):
    namespace.add_task(verb)
for verb in (deploy.unlock, sessions.sessions, vms.vms, vms.console, docs.docs):
    namespace.add_task(verb)
for verb in (
    sessions.viewer,
    templates.templates,
    templates.pool,
    alerts.alerts,
    webhooks.webhooks,
    open_and_health.health,
    open_and_health.open_pages,
    usage.usage,
    vms.screenshot,
    doctor.doctor,
    check,
    test,
):
    namespace.add_task(verb)
for name, module in (
    ("golden", golden),
    ("lab", lab),
    ("database", database),
    ("host", host_shell_and_logs),
):
    namespace.add_collection(Collection.from_module(module, name=name))
for name, verbs in (
    ("session", (sessions.start_session, sessions.end_session, sessions.login, sessions.give_code)),
    (
        "user",
        (
            users_and_tokens.add_user,
            users_and_tokens.list_users,
            users_and_tokens.change_role,
            users_and_tokens.rename_user,
            users_and_tokens.remove_user,
        ),
    ),
    ("alert", (alerts.try_alerts,)),
    ("webhook", (webhooks.resend, webhooks.try_endpoints)),
    ("bench", (bench.burst_bench, bench.clones_bench, bench.login_bench, bench.start_bench)),
    ("template", (templates.build_template, templates.show_template)),
    (
        "token",
        (
            users_and_tokens.create_token,
            users_and_tokens.list_tokens,
            users_and_tokens.revoke_token,
        ),
    ),
    ("credentials", (credentials.make_key, credentials.rotate, credentials.show_log)),
):
    namespace.add_collection(Collection(name, *verbs))
provider_verbs = Collection("providers", providers.check)
provider_verbs.add_task(providers.list_providers, default=True)
namespace.add_collection(provider_verbs)
