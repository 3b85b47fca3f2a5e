"""GitHub's workflows: valid, with verbs that exist, and safe with untrusted input."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_jsonschema.builtin_schemas import (  # type: ignore[import-untyped]
    get_builtin_schema,
)
from jsonschema import Draft7Validator

import tasks

FOLDER = Path(tasks.__file__).resolve().parent / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
OPERATIONS = {"deploy", "rollback"}  # verbs that change production
TESTS = {"test", "golden.verify"}

_CALL = re.compile(r"(?<!\S)\./inv[ \t]+([^|;&>\n]+)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@dataclass(frozen=True)
class Job:
    workflow: str
    name: str
    keys: dict[str, Any]

    @property
    def steps(self) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = self.keys.get("steps", [])
        return steps

    @property
    def calls(self) -> list[tuple[str, set[str]]]:
        return [call for step in self.steps for call in calls(step.get("run", ""))]

    @property
    def verbs(self) -> set[str]:
        return {verb for verb, _ in self.calls}

    def step(self, part: str) -> int:
        """Return the number of the first step with this text in its script or its action."""
        texts = [f"{step.get('run', '')}\n{step.get('uses', '')}" for step in self.steps]
        return next(number for number, text in enumerate(texts) if part in text)


def document(path: Path) -> dict[str, Any]:
    """Load a workflow as GitHub does; in YAML 1.1 of PyYAML the key `on` would be true."""
    return {"on" if key is True else key: value for key, value in _loaded(path).items()}


def _loaded(path: Path) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(path.read_text())
    return loaded


def jobs_of(path: Path) -> list[Job]:
    return [Job(path.name, name, keys) for name, keys in document(path)["jobs"].items()]


def calls(script: str) -> list[tuple[str, set[str]]]:
    """Return the verbs that a script calls, each with its long options; "" if there is no verb."""
    whole = script.replace("\\\n", " ")
    found = []
    for match in _CALL.finditer(whole):
        words = match[1].split()
        verb = "" if words[0].startswith("-") else words[0]
        found.append((verb, set(_OPTION.findall(match[1]))))
    return found


def known_options() -> dict[str, set[str]]:
    """Return the verbs of tasks.py with their long options."""
    contexts = tasks.namespace.to_contexts()
    return {
        name: set(context.flags)
        for context in contexts
        for name in (context.name, *context.aliases)
        if name
    }


JOBS = [job for path in FILES for job in jobs_of(path)]
WITH_STEPS = [job for job in JOBS if job.steps]
STEPS = [(job, step) for job in WITH_STEPS for step in job.steps]
SCRIPTS = [(job, step["run"]) for job, step in STEPS if "run" in step]
IN_PRODUCTION = [job for job in JOBS if job.verbs & OPERATIONS]

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
each_job = pytest.mark.parametrize(
    "job", WITH_STEPS, ids=[f"{job.workflow}:{job.name}" for job in WITH_STEPS]
)
each_operation = pytest.mark.parametrize("job", IN_PRODUCTION, ids=lambda job: job.name)


def job_named(workflow: str, name: str) -> Job:
    return next(job for job in JOBS if (job.workflow, job.name) == (workflow, name))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("sudo ./inv golden.build --json >a.json", [("golden.build", {"--json"})]),
        ("./inv --list", [("", {"--list"})]),
        ('exec ./inv x \\\n  ${A:+--one} ${B:+"--two=$B"} --c', [("x", {"--one", "--two", "--c"})]),
        ("./inv a --b || rm --c\n./inv d", [("a", {"--b"}), ("d", set())]),
        ("echo nothing", []),
    ],
)
def test_verb_calls_are_found_in_scripts(script: str, expected: list[tuple[str, set[str]]]) -> None:
    assert calls(script) == expected


@each_file
def test_workflow_matches_the_published_schema(path: Path) -> None:
    validator = Draft7Validator(get_builtin_schema("vendor.github-workflows"))
    faults = [
        f"{error.json_path}: {error.message}" for error in validator.iter_errors(document(path))
    ]
    assert not faults


@each_job
def test_workflow_calls_existing_verbs_and_options(job: Job) -> None:
    known = known_options() | {"": {"--list"}}
    for verb, options in job.calls:
        assert verb in known
        assert options <= known[verb], f"./inv {verb}"


@each_file
def test_workflow_may_only_read_the_repository(path: Path) -> None:
    assert document(path)["permissions"] == {"contents": "read"}
    assert not [job.name for job in jobs_of(path) if "permissions" in job.keys]
    assert "pull_request_target" not in document(path)["on"]


@each_file
def test_workflow_has_no_password_and_no_root_login(path: Path) -> None:
    text = path.read_text().replace("PasswordAuthentication no", "").lower()
    for word in ("password", "sshpass", "root@", "user root", "stricthostkeychecking no"):
        assert word not in text
    assert "ssh-keyscan" not in text, "it would trust whoever answers"


def test_scripts_contain_no_expressions() -> None:
    assert not [(job.name, script) for job, script in SCRIPTS if "${{" in script]


def test_only_pinned_actions_of_github_are_used() -> None:
    uses = [step["uses"] for _, step in STEPS if "uses" in step]
    assert uses
    assert not [use for use in uses if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", use)]
    called = [job.keys["uses"] for job in JOBS if "uses" in job.keys]
    assert not [use for use in called if not use.startswith("./.github/workflows/")]


def test_checkout_does_not_persist_credentials() -> None:
    checkouts = [step for _, step in STEPS if "actions/checkout@" in step.get("uses", "")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@each_job
def test_job_has_a_timeout_and_a_fixed_runner(job: Job) -> None:
    assert isinstance(job.keys["timeout-minutes"], int)
    system = re.fullmatch(r"ubuntu-(\d+)\.04", job.keys["runs-on"])
    assert system
    assert int(system[1]) >= 22


@each_job
def test_secrets_are_for_production_only(job: Job) -> None:
    has_secrets = "secrets." in str(job.keys) or "vars." in str(job.keys)
    assert not has_secrets or job in IN_PRODUCTION


@each_operation
def test_production_jobs_need_approval_and_run_one_at_a_time(job: Job) -> None:
    assert job.keys["environment"] == "production"
    assert job.keys["concurrency"] == {
        "group": "production",
        "cancel-in-progress": False,
        "queue": "max",
    }
    assert job.keys["if"] == "github.ref == 'refs/heads/main'"


@each_operation
def test_ssh_access_is_strict_and_removed_afterwards(job: Job) -> None:
    verb = next(iter(job.verbs & OPERATIONS))
    access, removal = job.step("$SSH_KEY"), job.step("rm -f ~/.ssh/production")
    script = job.steps[access]["run"]
    for line in ("User deploy", "StrictHostKeyChecking yes", "PasswordAuthentication no"):
        assert line in script
    assert "umask 077" in script
    assert re.search(r"chmod 600 \S*ssh/production ", script)
    assert re.search(r"chmod 400 \S*known_hosts", script)
    assert access < job.step(f"./inv {verb}") < removal
    assert job.steps[removal]["if"] == "always()"
    for file in ("~/.ssh/known_hosts", "~/.ssh/config", "inventory/production.py"):
        assert file in job.steps[removal]["run"]


@each_job
def test_logs_are_uploaded_also_after_a_failure(job: Job) -> None:
    uploads = [
        (number, step["with"]["path"])
        for number, step in enumerate(job.steps)
        if "actions/upload-artifact@" in step.get("uses", "") and step.get("if") == "always()"
    ]
    for verb in job.verbs & (OPERATIONS | TESTS):
        assert [n for n, path in uploads if n > job.step(f"./inv {verb}") and "logs/" in path]


def test_push_to_main_is_checked_tested_and_deployed() -> None:
    deploy = document(FOLDER / "deploy.yml")
    assert deploy["on"]["push"] == {"branches": ["main"]}
    job = job_named("deploy.yml", "deploy")
    assert "deploy" in job.verbs
    assert deploy["jobs"][job.keys["needs"]] == {"uses": "./.github/workflows/checks.yml"}
    checks = jobs_of(FOLDER / "checks.yml")
    called = {verb for job in checks for verb in job.verbs}
    assert {"check", "test", "golden.build", "golden.verify", "golden.promote"} <= called
    assert not [job.name for job in checks if "if" in job.keys or "continue-on-error" in job.keys]


def test_pull_requests_cancel_only_their_own_earlier_runs() -> None:
    checks = document(FOLDER / "checks.yml")
    assert set(checks["on"]) == {"pull_request", "workflow_call"}
    of_a_pull_request = "github.event_name == 'pull_request'"
    assert checks["concurrency"]["cancel-in-progress"] == f"${{{{ {of_a_pull_request} }}}}"
    assert f"{of_a_pull_request} && github.ref || github.run_id" in checks["concurrency"]["group"]


def test_deployed_image_is_the_verified_one() -> None:
    image, deploy = job_named("checks.yml", "image"), job_named("deploy.yml", "deploy")
    verified, packed = image.step("golden.verify"), image.step("golden.promote")
    handed = next(step for step in image.steps if step.get("with", {}).get("name") == "image")
    assert verified < packed < image.steps.index(handed)
    assert "always" not in image.steps[packed]["if"] + handed["if"]
    taken = deploy.steps[deploy.step("actions/download-artifact@")]
    assert taken["with"]["name"] == "image"
    assert "golden.build" not in deploy.verbs


def test_manual_deployment_takes_target_and_bootstrap() -> None:
    inputs = document(FOLDER / "deploy.yml")["on"]["workflow_dispatch"]["inputs"]
    assert inputs["target"]["type"] == "choice"
    assert inputs["target"]["options"] == ["all", "master-controller", "vm-agent"]
    assert inputs["bootstrap"]["type"] == "boolean"
    assert inputs["bootstrap"]["default"] is False
    job = job_named("deploy.yml", "deploy")
    environment = job.steps[job.step("./inv deploy")]["env"]
    assert environment["TARGET"] == "${{ inputs.target || 'all' }}"
    assert environment["BOOTSTRAP"] == "${{ inputs.bootstrap && 'yes' || '' }}"


def test_rollback_is_manual_only() -> None:
    rollback = document(FOLDER / "rollback.yml")
    assert set(rollback["on"]) == {"workflow_dispatch"}
    assert "rollback" in job_named("rollback.yml", "rollback").verbs
