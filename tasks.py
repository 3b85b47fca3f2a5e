"""The verbs. Each parses, calls polydev and prints; `./inv --list` shows them all.

Where a verb answers something, `--json` prints it on stdout with stable fields; progress goes
to stderr. An error ends with status 1 and one message that says what to do next.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from polydev.cli import answer, edge, megabytes
from polydev.errors import ConfigError
from polydev.settings import Settings

if TYPE_CHECKING:
    from polydev.image.store import ImageStore, ListedImage
    from polydev.lab import Lab
    from polydev.progress import Steps
    from polydev.release.applying import DescribedHost, Plan, Project
    from polydev.release.records import Record

# What a verb needs is imported inside it: starting to list the verbs must cost nothing.
ROOT = Path(__file__).resolve().parent
RECIPE = ROOT / "golden" / "recipe.yaml"
SPECS = ROOT / "tests" / "spec" / "image"
TEST_KINDS = ("unit", "integration", "e2e", "bench")

RECIPE_HELP = f"recipe to build (default: {RECIPE.relative_to(ROOT)})"
IMAGE_HELP = "an image's digest or the start of it, or: golden, previous, latest"
JSON_HELP = "answer as JSON on stdout"
LAB_INVENTORY = "inventory/lab.py"
LAB_HELP = "which lab (default: POLYDEV_LAB, or dev)"
INVENTORY_HELP = f"inventory file (default: {LAB_INVENTORY})"
HOST_HELP = "one host of an inventory that has several"
TARGETS = ("all", "master-controller", "vm-agent")
LOGS = ROOT / "logs"


def _store() -> ImageStore:
    from polydev.image.store import ImageStore

    return ImageStore(Settings.from_environment().store)


def _image_line(image: ListedImage) -> str:
    notes = ["previous"] * image.is_previous + ["in use"] * image.in_use
    shown = f"{image.digest[:12]}  {image.created_at:%Y-%m-%d %H:%M}  {image.state:<9}"
    shown += f"{megabytes(image.rootfs_allocated_bytes):>9}  {image.recipe}  {', '.join(notes)}"
    return shown.rstrip() + (f"\n              {image.cause}" if image.cause else "")


@task(
    help={
        "recipe": RECIPE_HELP,
        "no_cache": "make every layer afresh",
        "refresh": "ask the package archive for news even if it was asked within the hour",
        "offline": "use the package lists of the last build, ask nobody",
        "json": JSON_HELP,
    }
)
@edge
def build(
    context: Context,
    recipe: str = str(RECIPE),
    no_cache: bool = False,
    refresh: bool = False,
    offline: bool = False,
    json: bool = False,
) -> None:
    """Build the image of a recipe; what is unchanged is not built again."""
    from polydev.image.build import BuildOptions, build
    from polydev.image.recipe import load_recipe
    from polydev.progress import Steps

    result = build(
        load_recipe(Path(recipe)),
        Settings.from_environment(),
        _store(),
        Steps(),
        BuildOptions(no_cache=no_cache, refresh=refresh, offline=offline),
    )
    record = result.record
    size = megabytes(record.files["rootfs.ext4"].allocated_bytes)
    what = "built" if result.changed else "unchanged:"
    answer(
        {
            "digest": record.digest,
            "changed": result.changed,
            "seconds": round(result.seconds, 3),
            "rootfsSha256": record.files["rootfs.ext4"].sha256,
            "rootfsBytes": record.files["rootfs.ext4"].allocated_bytes,
            "layers": [layer.model_dump() for layer in record.layers],
        },
        as_json=json,
        text=f"{what} image {record.digest[:12]}, {size}, {result.seconds:.1f} s",
    )


@task(
    positional=["image"],
    help={
        "image": IMAGE_HELP,
        "deadline": "seconds until a boot that is not ready counts as failed (default: 60 or, "
        "without KVM, 240)",
        "json": JSON_HELP,
    },
)
@edge
def verify(context: Context, image: str, deadline: float = 0.0, json: bool = False) -> None:
    """Boot exactly this image and run all specs against it; only then can it be promoted."""
    from polydev.image.verify import VerifyOptions, verify
    from polydev.progress import Steps

    store = _store()
    record = verify(
        store.resolve(image),
        Settings.from_environment(),
        store,
        SPECS,
        Steps(),
        VerifyOptions(deadline_seconds=deadline or None),
    )
    seen = record.verification
    assert seen is not None
    passed = sum(result.outcome == "passed" for result in seen.specs)
    ready = seen.boot_timings_seconds["ready"]
    answer(
        {"digest": record.digest, **seen.model_dump(mode="json")},
        as_json=json,
        text=f"verified image {record.digest[:12]}: {passed} specs passed, ready after "
        f"{ready:.1f} s under {seen.accelerator}, {seen.seconds:.1f} s in all",
    )


@task(positional=["image"], help={"image": IMAGE_HELP, "json": JSON_HELP})
@edge
def promote(context: Context, image: str, json: bool = False) -> None:
    """Make a verified image the golden one."""
    store = _store()
    change = store.promote(store.resolve(image))
    was = f", before it {change.was[:12]}" if change.was and change.changed else ""
    done = "is golden now" if change.changed else "is golden already"
    answer(change, as_json=json, text=f"image {change.digest[:12]} {done}{was}")


@task(help={"json": JSON_HELP})
@edge
def rollback(context: Context, json: bool = False) -> None:
    """Make the image golden that was golden before."""
    change = _store().rollback()
    answer(
        change,
        as_json=json,
        text=f"image {change.digest[:12]} is golden again, instead of {(change.was or '')[:12]}",
    )


@task(name="list", help={"json": JSON_HELP})
@edge
def list_images(context: Context, json: bool = False) -> None:
    """All images in the store, newest first."""
    images = _store().images()
    answer(
        [image.model_dump(mode="json") for image in images],
        as_json=json,
        text="\n".join(map(_image_line, images)) or "no images yet: ./inv golden.build",
    )


@task(positional=["image"], help={"image": IMAGE_HELP, "json": JSON_HELP})
@edge
def show(context: Context, image: str, json: bool = False) -> None:
    """Everything known of one image: layers, packages, sizes, specs, boot timings."""
    store = _store()
    record = store.record(store.resolve(image))
    seen = record.verification
    lines = [f"image {record.digest}", f"recipe {record.recipe}, kernel {record.kernel_version}"]
    lines += [f"  layer {layer.name:<10} {layer.id[:12]}" for layer in record.layers]
    lines += [
        f"  {name:<12} {megabytes(entry.allocated_bytes):>9}  sha256 {entry.sha256[:12]}"
        for name, entry in record.files.items()
    ]
    lines.append(f"{len(record.packages)} packages (--json lists them)")
    if seen is None:
        lines.append("never verified")
    else:
        result = "passed" if seen.passed else f"failed: {seen.cause}"
        lines.append(f"verified {seen.at:%Y-%m-%d %H:%M} under {seen.accelerator}: {result}")
        stages = ", ".join(f"{name} {s:.1f} s" for name, s in seen.boot_timings_seconds.items())
        lines.append(f"boot: {stages}")
    answer(record, as_json=json, text="\n".join(lines))


@task(positional=["old", "new"], help={"old": IMAGE_HELP, "new": IMAGE_HELP, "json": JSON_HELP})
@edge
def diff(context: Context, old: str, new: str, json: bool = False) -> None:
    """What one image has that another has not: packages, files, size."""
    from polydev.image.diff import diff, tree_diff

    store = _store()
    before, after = store.resolve(old), store.resolve(new)
    files = tree_diff(store.path(before), store.path(after))
    found = diff(store.record(before), store.record(after), files)
    answer(found, as_json=json, text=found.as_text())


@task(
    help={
        "keep": "how many of the newest other images stay (default: 2)",
        "dry_run": "only say what would go",
        "json": JSON_HELP,
    }
)
@edge
def prune(context: Context, keep: int = 2, dry_run: bool = False, json: bool = False) -> None:
    """Remove images that are not golden, not previous, not in use and not among the newest.

    Cached layers that no image is made of any more go with them.
    """
    from polydev.image.build import prune_cache

    store = _store()
    pruned = store.prune(keep, dry_run=dry_run)
    layers, layer_bytes = prune_cache(Settings.from_environment().cache, store, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} image {digest[:12]}" for digest in pruned.removed]
    lines += [f"kept {image.digest[:12]}: {image.reason}" for image in pruned.kept]
    lines += [f"{verb} layer {layer[:12]}" for layer in layers]
    freed = pruned.freed_bytes + layer_bytes
    lines.append(f"{megabytes(freed)} {'to be ' if dry_run else ''}freed")
    found = pruned.model_dump(mode="json") | {"layers": layers, "freedBytes": freed}
    answer(found, as_json=json, text="\n".join(lines))


@task(
    help={
        "recipe": RECIPE_HELP,
        "internet": "let the VM's browser out; it then reaches this machine's loopback too",
        "lab": "deploy the image to the lab; --no-lab leaves that out",
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
    """From nothing to a verified golden image, a VM of it here, and a host deployed with it.

    The host is a lab: a real Debian with systemd in a container, reached over SSH.
    """
    from polydev.image.build import BuildOptions, build
    from polydev.image.recipe import load_recipe
    from polydev.image.verify import VerifyOptions, verify
    from polydev.local import bring_up
    from polydev.progress import Steps

    settings, store, steps = Settings.from_environment(), _store(), Steps()
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
        + (f"its host's controller: {deployed['controller']}\n" if deployed else "")
        + "end both with ./inv down",
    )


def _deploy_lab(steps: Steps) -> dict[str, Any]:
    """The lab, deployed with the golden image."""
    from polydev.lab import up
    from polydev.release import changes

    made = up(_lab_name(), Settings.from_environment(), steps)
    project, host = _host(LAB_INVENTORY, "")
    record = changes.deploy(project, host, changes.DeployOptions(), steps, LOGS)
    return {
        "lab": made.name,
        "controller": _controller_url(made),
        "deployment": {
            "id": record.id,
            "host": record.host,
            "status": record.status,
            "changes": record.changes,
        },
    }


def _lab_name() -> str:
    return os.environ.get("POLYDEV_LAB", "dev")


def _controller_url(lab: Lab) -> str:
    return f"http://{lab.address}:4000"


@task(help={"json": JSON_HELP})
@edge
def down(context: Context, json: bool = False) -> None:
    """End what up started; images stay."""
    from polydev.lab import down
    from polydev.local import take_down

    settings = Settings.from_environment()
    ended = take_down(settings)
    lab = down(_lab_name(), settings)
    what = [name for name, was in (("the VM", ended), (f"lab {_lab_name()}", lab)) if was]
    text = f"ended {' and '.join(what)}" if what else "nothing was running"
    answer({"ended": ended, "labEnded": lab}, as_json=json, text=text)


@task(help={"json": JSON_HELP})
@edge
def where(context: Context, json: bool = False) -> None:
    """Where what is running can be reached."""
    from polydev.lab import find as find_lab
    from polydev.local import find

    settings = Settings.from_environment()
    vm, lab = find(settings), find_lab(_lab_name(), settings)
    found: dict[str, Any] = {"running": vm is not None}
    if vm is not None:
        found |= {"vmId": vm.vm_id, "image": vm.image_digest, **vm.addresses()}
    if lab is not None:
        found |= {"lab": lab.name, "controller": _controller_url(lab)}
    text = "\n".join(f"{name:<11}{value}" for name, value in found.items())
    answer(found, as_json=json, text=text if vm or lab else "nothing is running: ./inv up")


# Hosts: deployments and the lab.


@task(help={"name": LAB_HELP, "json": JSON_HELP})
@edge
def lab_up(context: Context, name: str = "", json: bool = False) -> None:
    """Start a lab: a throw-away Debian host in a container, reached over SSH."""
    from polydev.lab import up
    from polydev.progress import Steps

    made = up(name or _lab_name(), Settings.from_environment(), Steps())
    choice = "" if made.name == "dev" else f"POLYDEV_LAB={made.name} "
    answer(
        _lab_fields(made),
        as_json=json,
        text=f"lab {made.name} runs at {made.address}\n"
        f"  {choice}./inv deploy\n  {choice}./inv lab.shell",
    )


def _lab_fields(lab: Lab) -> dict[str, Any]:
    return {
        "name": lab.name,
        "address": lab.address,
        "sshPort": lab.ssh_port,
        "user": lab.user,
        "key": str(lab.key),
        "knownHosts": str(lab.known_hosts),
    }


@task(help={"name": LAB_HELP, "json": JSON_HELP})
@edge
def lab_down(context: Context, name: str = "", json: bool = False) -> None:
    """End a lab and remove all that it wrote."""
    from polydev.lab import down

    ended = down(name or _lab_name(), Settings.from_environment())
    text = "ended" if ended else f"no lab {name or _lab_name()}"
    answer({"ended": ended}, as_json=json, text=text)


@task(help={"json": JSON_HELP})
@edge
def lab_list(context: Context, json: bool = False) -> None:
    """The labs that run."""
    from polydev.lab import labs

    found = [lab for lab in labs(Settings.from_environment()) if lab.running()]
    answer(
        [_lab_fields(lab) for lab in found],
        as_json=json,
        text="\n".join(f"{lab.name:<12}{lab.address}" for lab in found) or "none: ./inv lab.up",
    )


@task(help={"name": LAB_HELP})
@edge
def lab_shell(context: Context, name: str = "") -> None:
    """A root shell in a lab, past SSH."""
    from polydev.lab import shell
    from polydev.run import call

    raise SystemExit(call(shell(_lab(name))))


@task(help={"name": LAB_HELP})
@edge
def lab_logs(context: Context, name: str = "") -> None:
    """What a lab's journal and console say."""
    from polydev.lab import logs

    found = logs(_lab(name))
    print(found.journal, found.console, sep="\n")


def _lab(name: str) -> Lab:
    from polydev.lab import find

    wanted = name or _lab_name()
    lab = find(wanted, Settings.from_environment())
    if lab is None:
        raise ConfigError(f"no lab {wanted} runs", f"./inv lab.up --name {wanted}")
    return lab


def _host(inventory: str, host: str) -> tuple[Project, DescribedHost]:
    from polydev.release.applying import Project, describe

    project = Project(ROOT, Path(inventory).resolve())
    described = describe(project)
    hosts = [each for each in described if host in ("", each.name)]
    if len(hosts) != 1:
        known = ", ".join(each.name for each in described)
        what = f"no host {host}" if host else "several hosts"
        raise ConfigError(f"{inventory}: {what}", f"name one with --host: {known}")
    return project, hosts[0]


def _record_fields(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json", by_alias=True)


@task(
    help={
        "inventory": INVENTORY_HELP,
        "host": HOST_HELP,
        "target": "all, master-controller or vm-agent (the golden image that has it)",
        "bootstrap": "a first set-up: ask nothing of the host's health afterwards",
        "plan": "only say what would change",
        "json": JSON_HELP,
    }
)
@edge
def deploy(
    context: Context,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    target: str = "all",
    bootstrap: bool = False,
    plan: bool = False,
    json: bool = False,
) -> None:
    """Deploy to a host; whatever fails, it goes back to what it was."""
    from polydev.progress import Steps
    from polydev.release import changes

    if target not in TARGETS:
        raise ConfigError(f"no such target: {target}", f"one of {', '.join(TARGETS)}")
    project, described = _host(inventory, host)
    options = changes.DeployOptions(target=target, bootstrap=bootstrap)
    if plan:
        found = changes.plan(project, described, options)
        answer(_plan_fields(found), as_json=json, text=_plan_text(found))
        return
    record = changes.deploy(project, described, options, Steps(), LOGS)
    answer(
        _record_fields(record),
        as_json=json,
        text=f"deployment {record.id} of {record.host} succeeded: {record.changes} changes",
    )


def _plan_fields(plan: Plan) -> dict[str, Any]:
    changing = [
        {"name": operation.name, "diff": list(operation.diff)} for operation in plan.changing
    ]
    return {"changes": len(changing), "operations": changing}


def _plan_text(plan: Plan) -> str:
    lines = []
    for operation in plan.changing:
        lines += [operation.name, *(f"    {line}" for line in operation.diff)]
    return "\n".join([*lines, f"{len(plan.changing)} of {len(plan.operations)} would change"])


@task(
    help={
        "inventory": INVENTORY_HELP,
        "host": HOST_HELP,
        "to": "id of a deployment that succeeded (default: the one before the current)",
        "json": JSON_HELP,
    }
)
@edge
def rollback_host(
    context: Context,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    to: str = "",
    json: bool = False,
) -> None:
    """Bring a host back to the state of an earlier deployment, its database too."""
    from polydev.progress import Steps
    from polydev.release import changes

    project, described = _host(inventory, host)
    record = changes.rollback(project, described, to or None, Steps(), LOGS)
    answer(
        _record_fields(record),
        as_json=json,
        text=f"{record.host} is back at deployment {record.state}",
    )


@task(help={"inventory": INVENTORY_HELP, "host": HOST_HELP, "json": JSON_HELP})
@edge
def backup(
    context: Context, inventory: str = LAB_INVENTORY, host: str = "", json: bool = False
) -> None:
    """Back up a host's configuration, database, release and golden link now."""
    from polydev.progress import Steps
    from polydev.release import changes

    project, described = _host(inventory, host)
    record = changes.back_up(project, described, Steps(), LOGS)
    answer(_record_fields(record), as_json=json, text=f"backup {record.id} of {record.host}")


@task(help={"inventory": INVENTORY_HELP, "host": HOST_HELP, "json": JSON_HELP})
@edge
def deployments(
    context: Context, inventory: str = LAB_INVENTORY, host: str = "", json: bool = False
) -> None:
    """What was deployed to a host, newest first, and how it ended."""
    from polydev.release import changes
    from polydev.release.records import current_state, newest_first
    from polydev.release.transaction import records_of

    _, described = _host(inventory, host)
    with changes.connected(described) as connection:
        records = newest_first(records_of(connection))
    current = current_state(records)
    lines = [
        f"{'*' if record.id == current else ' '} {record.id:<32} {record.kind:<9}"
        f"{record.status:<16}{record.changes:>4} changes  {record.reason or ''}".rstrip()
        for record in records
    ]
    answer(
        [_record_fields(record) for record in records],
        as_json=json,
        text="\n".join(lines) or f"nothing was deployed to {described.name}: ./inv deploy",
    )


@task(help={"inventory": INVENTORY_HELP, "host": HOST_HELP, "json": JSON_HELP})
@edge
def drift(
    context: Context, inventory: str = LAB_INVENTORY, host: str = "", json: bool = False
) -> None:
    """What on a host is not as declared: exit status 2 and each difference, or 0."""
    from polydev.release import changes

    project, described = _host(inventory, host)
    found = changes.plan(project, described, changes.DeployOptions())
    answer(
        _plan_fields(found),
        as_json=json,
        text=_plan_text(found) if found.changing else f"{described.name} is as declared",
    )
    raise SystemExit(2 if found.changing else 0)


@task(help={"inventory": INVENTORY_HELP, "host": HOST_HELP, "json": JSON_HELP})
@edge
def unlock(
    context: Context, inventory: str = LAB_INVENTORY, host: str = "", json: bool = False
) -> None:
    """Break a host's deployment lock; the next deployment finishes what its holder left."""
    from polydev.release import changes

    _, described = _host(inventory, host)
    broken = changes.unlock(described)
    lock = broken["broken"]
    text = f"lock {lock['id']} of {lock['owner']} is broken" if lock else "nobody held the lock"
    answer(broken, as_json=json, text=f"{described.name}: {text}")


@task(help={"fix": "let ruff mend and format what it can first"})
@edge
def check(context: Context, fix: bool = False) -> None:
    """Formatting, lint, types and import contracts."""
    from polydev.run import run_lines

    tools = Path(sys.executable).parent
    commands = [["ruff", "format", "."], ["ruff", "check", "--fix", "."]] if fix else []
    commands += [["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]]
    commands.append(["lint-imports"])
    for name, *words in commands:
        print(f"{name} {' '.join(words)}", flush=True)
        run_lines([tools / name, *words], lambda line: print(" ", line, flush=True), cwd=ROOT)


@task(
    help={
        "only": f"run a part: {', '.join(TEST_KINDS)}, spec; several with commas",
        "k": "run only tests whose name matches (pytest's -k)",
    }
)
@edge
def test(context: Context, only: str = "", k: str = "") -> None:  # noqa: PT028  (a verb)
    """Run the tests, the quickest kind first; all of them unless told otherwise."""
    kinds = [kind.strip() for kind in only.split(",") if kind.strip()]
    unknown = [kind for kind in kinds if kind not in (*TEST_KINDS, "spec")]
    if unknown:
        raise ConfigError(
            f"no such kind of test: {', '.join(unknown)}", f"one of {', '.join(TEST_KINDS)}, spec"
        )
    if not kinds:
        check(context)
    if "spec" in kinds:
        verify(context, "latest")
    folders = [f"tests/{kind}" for kind in (kinds or TEST_KINDS) if kind != "spec"]
    if folders:
        from polydev.run import call

        words = [sys.executable, "-m", "pytest", *folders, *(["-k", k] if k else [])]
        raise SystemExit(call(words, cwd=ROOT))


namespace = Collection(up, down, where, deploy, backup, deployments, drift, unlock, check, test)
namespace.add_task(rollback_host, name="rollback")
golden = Collection("golden", build, verify, promote, rollback, list_images, show, diff, prune)
namespace.add_collection(golden)
lab = Collection("lab")
for each in (lab_up, lab_down, lab_list, lab_shell, lab_logs):
    lab.add_task(each, name=each.__name__.removeprefix("lab_"))
namespace.add_collection(lab)
