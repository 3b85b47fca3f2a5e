"""./inv in a temporary checkout: real bash, but apt, dpkg, Python and pip are fakes that log calls.

Nothing here reaches a network or this machine's packages.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from polydev.processes import Completed, run

ROOT = Path(__file__).parents[2]
REAL_TOOLS = (
    *("bash", "cat", "comm", "cp", "env", "flock", "mkdir", "readlink"),
    *("rm", "sed", "sha256sum", "sleep", "sort", "stat"),
)
FAKES = {
    "id": 'echo "$FAKE_UID"',
    "dpkg-query": """
        echo "dpkg-query" >>"$FAKE_LOG"
        while read -r name; do echo "installed $name"; done <"$DPKG_ADMINDIR/status"
        """,
    "apt-get": """
        echo "apt-get $*" >>"$FAKE_LOG"
        echo "apt-get says this on stdout"
        [[ " $* " != *" install "* ]] || exit "$FAKE_APT_STATUS"
        """,
    "python3": """
        case "$1 ${2:-}" in
            "-m venv")
                echo "venv" >>"$FAKE_LOG"
                mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"
                cp "$0" "$3/bin/python" ;;
            "-m pip")
                echo "pip ${*:3}" >>"$FAKE_LOG"
                sleep "$FAKE_PIP_SECONDS"
                exit "$FAKE_PIP_STATUS" ;;
            "-m compileall")
                echo "compileall" >>"$FAKE_LOG"
                exit 1 ;;
            "-m polydev")
                printf "%s\n" "$PWD" "${@:3}" ;;
        esac
        """,
    "old-python": "exit 1  # to the question for its version",
}


@dataclass(frozen=True)
class Tree:
    """A checkout with ./inv and small package lists, on a machine made of fakes."""

    root: Path
    fakes: Path

    @property
    def log(self) -> Path:
        return self.fakes / "log"

    @property
    def dpkg_status(self) -> Path:
        return self.fakes / "status"

    def start(self, *words: str, program: Path | None = None, **changes: str) -> Completed:
        env = {
            "PATH": str(self.fakes),
            "DPKG_ADMINDIR": str(self.fakes),
            "POLYDEV_PYTHON": "",
            "FAKE_LOG": str(self.log),
            "FAKE_UID": "0",
            "FAKE_APT_STATUS": "0",
            "FAKE_PIP_STATUS": "0",
            "FAKE_PIP_SECONDS": "0",
            **changes,
        }
        program = program or self.root / "inv"
        return run([program, *words], env=env, cwd=self.fakes, check=False, timeout_seconds=300)

    def calls(self) -> list[str]:
        """Return the calls of the fakes since the last call of this method."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path / "checkout", tmp_path / "machine")
    requirements = made.root / "requirements"
    requirements.mkdir(parents=True)
    made.fakes.mkdir()
    shutil.copy(ROOT / "inv", made.root / "inv")
    (requirements / "lock.txt").write_text("invoke==3\n")
    (requirements / "apt.txt").write_text("# why\n\nqemu   # runs VMs\nmmdebstrap\n")
    (requirements / "apt-test.txt").write_text("chromium # looks at them\n")
    for name in REAL_TOOLS:
        found = shutil.which(name)
        assert found, name
        (made.fakes / name).symlink_to(found)
    for name, body in FAKES.items():
        (made.fakes / name).write_text(f"#!/usr/bin/env bash\nset -eu\n{body}\n")
        (made.fakes / name).chmod(0o755)
    made.dpkg_status.write_text("mmdebstrap\nqemu\n")
    return made


def test_first_start_sets_up_and_runs_verb_in_current_folder(tree: Tree) -> None:
    first = tree.start("golden.build", "--json")
    assert first.status == 0, first.stderr
    said = [str(tree.fakes), "--search-root", str(tree.root), "golden.build", "--json"]
    assert first.stdout.splitlines() == said
    calls = tree.calls()  # apt's and those for .venv run side by side
    assert sorted(call.split()[0] for call in calls) == ["compileall", "dpkg-query", "pip", "venv"]
    (pip,) = (call for call in calls if call.startswith("pip"))
    assert "--require-hashes" in pip
    assert pip.endswith(f"-r {tree.root}/requirements/lock.txt")
    path_file = tree.root / ".venv/lib/python3.11/site-packages/polydev.pth"
    assert path_file.read_text() == f"{tree.root}/src\n"


def test_second_start_runs_no_setup_commands(tree: Tree) -> None:
    tree.start("check")
    tree.calls()
    second = tree.start("check")
    assert (second.status, second.stderr, tree.calls()) == (0, "", [])


def test_without_a_verb_the_verbs_are_listed(tree: Tree) -> None:
    assert tree.start().stdout.splitlines()[-1] == "--list"


def test_help_after_a_verb_is_about_the_verb(tree: Tree) -> None:
    words = tree.start("console", "--follow", "--help", "--help").stdout.splitlines()
    assert words[3:] == ["--help", "console"]
    assert tree.start("--help", "console").stdout.splitlines()[3:] == ["--help", "console"]


def test_a_link_to_inv_finds_the_checkout(tree: Tree) -> None:
    link = tree.fakes / "link-to-inv"
    link.symlink_to(tree.root / "inv")
    assert str(tree.root) in tree.start("check", program=link).stdout.splitlines()


def test_missing_packages_without_root_are_named(tree: Tree) -> None:
    tree.dpkg_status.write_text("mmdebstrap\n")
    refused = tree.start("check", FAKE_UID="1000")
    assert (refused.status, refused.stdout) == (1, "")
    said = [line for line in refused.stderr.splitlines() if "making .venv" not in line]
    missing, following = said
    assert missing == "inv: missing system packages: qemu"
    assert following.endswith("apt-get install --no-install-recommends qemu")
    assert not [call for call in tree.calls() if call.startswith("apt-get")]


def test_root_installs_exactly_what_is_missing(tree: Tree) -> None:
    tree.dpkg_status.write_text("mmdebstrap\n")
    done = tree.start("check")
    assert done.status == 0
    assert "apt-get says" in done.stderr
    assert "apt-get says" not in done.stdout
    update, install = (call for call in tree.calls() if call.startswith("apt-get"))
    assert update == "apt-get -q update"
    assert install.endswith("--no-install-recommends qemu")


def test_failed_apt_get_prints_next_step_and_is_retried(tree: Tree) -> None:
    tree.dpkg_status.write_text("")
    for _ in range(2):
        failed = tree.start("check", FAKE_APT_STATUS="100")
        assert (failed.status, failed.stdout) == (1, "")
        last = failed.stderr.splitlines()[-1]
        assert last.startswith("inv: apt-get failed")
        assert last.endswith("--no-install-recommends mmdebstrap qemu")
        assert sum(call.startswith("apt-get") for call in tree.calls()) == 2


def test_only_the_verb_test_needs_the_packages_for_tests(tree: Tree) -> None:
    tree.start("check")
    assert not [call for call in tree.calls() if call.startswith("apt-get")]
    tree.start("test")
    assert tree.calls()[-1].endswith("--no-install-recommends chromium")


@pytest.mark.parametrize(
    "words",
    [
        ("user.add", "--name", "test"),
        ("lab.up", "--name=test"),
        ("session.end", "test"),
        ("golden.show", "--json", "test"),
        ("--list",),
        (),
    ],
)
def test_word_test_as_argument_needs_no_test_packages(tree: Tree, words: tuple[str, ...]) -> None:
    tree.start("check")
    tree.calls()
    assert tree.start(*words).status == 0
    assert tree.calls() == []


@pytest.mark.parametrize(
    "words", [("test", "--help"), ("--help", "test"), ("test", "--only", "unit", "--help")]
)
def test_help_runs_no_setup(tree: Tree, words: tuple[str, ...]) -> None:
    tree.start("check")
    tree.dpkg_status.write_text("")
    (tree.root / "requirements/lock.txt").write_text("invoke==4\n")
    before = {file: file.stat().st_mtime_ns for file in tree.root.rglob("*")}
    tree.calls()
    shown = tree.start(*words, FAKE_UID="1000")
    assert (shown.status, shown.stderr) == (0, "")
    assert shown.stdout.splitlines()[3:] == ["--help", "test"]
    assert tree.calls() == []
    assert {file: file.stat().st_mtime_ns for file in tree.root.rglob("*")} == before


def test_help_without_venv_makes_only_the_venv(tree: Tree) -> None:
    tree.dpkg_status.write_text("")
    assert tree.start("test", "--help", FAKE_UID="1000").status == 0
    assert [call.split()[0] for call in tree.calls()] == ["venv", "pip", "compileall"]


def test_without_dpkg_the_supported_systems_are_named(tree: Tree) -> None:
    (tree.fakes / "dpkg-query").unlink()
    tree.dpkg_status.unlink()
    refused = tree.start("check")
    assert (refused.status, refused.stdout) == (1, "")
    assert "Debian 12 or Ubuntu 22.04" in refused.stderr


@pytest.mark.parametrize("python", ["old-python", "no-such-python"])
def test_unsuitable_python_is_refused(tree: Tree, python: str) -> None:
    refused = tree.start("check", POLYDEV_PYTHON=python)
    assert (refused.status, refused.stdout) == (1, "")
    assert f"no Python 3.10 or newer with venv: tried {python}" in refused.stderr
    assert not (tree.root / ".venv").exists()


def test_incomplete_venv_is_rebuilt(tree: Tree) -> None:
    failed = tree.start("check", FAKE_PIP_STATUS="1")
    assert (failed.status, failed.stdout) == (1, "")
    assert failed.stderr.splitlines()[-1].startswith("inv: could not make .venv")
    leftover = tree.root / ".venv/leftover"
    leftover.touch()
    assert tree.start("check").status == 0
    assert not leftover.exists()


def test_changed_lock_or_moved_checkout_rebuilds_venv(tree: Tree) -> None:
    tree.start("check")
    (tree.root / "requirements/lock.txt").write_text("invoke==4\n")
    tree.calls()
    tree.start("check")
    assert "venv" in tree.calls()
    moved = Tree(tree.root.rename(tree.root.with_name("moved")), tree.fakes)
    moved.start("check")
    assert "venv" in moved.calls()


def test_changed_dpkg_status_triggers_package_check(tree: Tree) -> None:
    tree.start("check")
    tree.calls()
    tree.dpkg_status.write_text("mmdebstrap\nqemu\nunrelated\n")
    tree.start("check")
    assert tree.calls() == ["dpkg-query"]


def test_concurrent_starts_set_up_once(tree: Tree) -> None:
    def start(_: int) -> Completed:
        return tree.start("check", FAKE_PIP_SECONDS="0.5")

    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(start, range(3)))
    assert [end.status for end in ends] == [0, 0, 0]
    calls = tree.calls()
    assert (calls.count("dpkg-query"), calls.count("venv")) == (1, 1)


def test_unwritable_checkout_is_reported_with_next_step(tree: Tree) -> None:
    (tree.root / ".inv").touch()  # root may write everywhere, but not below a file
    refused = tree.start("check")
    assert (refused.status, refused.stdout) == (1, "")
    said = refused.stderr.splitlines()
    assert said[-2] == f"inv: cannot write to {tree.root}/.inv"
    assert said[-1].startswith("inv: next: ")
