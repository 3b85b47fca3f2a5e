"""polkit's permissions of our users, and rules of others that concern them."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from polydev.hosttool import polkit
from polydev.hosttool.errors import HostError
from polydev.hosttool.polkit import differences, mend, rules_of_others

# The tests make the processes of this user.
HOST: dict[str, object] = {"accounts": [{"name": "polydev-controller"}, {"name": "polydev-vm-2"}]}
RULES = "polkit-1/rules.d"
BY_HAND = 'polkit.addRule(function(a, s) { if (s.user == "polydev-vm-3") return "yes"; });\n'
USUAL = {"microvm@2.service": 0, "ssh.service": 1}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """pkcheck's answers for the controller by unit, and for a VM's user by action."""
    said: dict[str, int] = dict(USUAL)

    def ask(argv: list[str]) -> tuple[int, str]:
        if argv[0] == "systemctl":
            return 0, "4711" if said else "0"
        if argv[4] != "4711":
            return said.get(argv[2], 1), ""
        return next(status for unit, status in said.items() if unit in argv), ""

    monkeypatch.setattr(polkit, "_ask", ask)
    # A user of this machine replaces the user of a VM.
    monkeypatch.setattr(polkit, "_vm_user", lambda host: "nobody" if host else None)
    return said


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (USUAL, ""),
        ({**USUAL, "ssh.service": 0}, "the controller may start ssh.service"),
        ({**USUAL, "microvm@2.service": 1}, "the controller may not start microvm@2.service"),
        ({**USUAL, polkit.ACTION: 0}, f"nobody may {polkit.ACTION}"),
        (
            {**USUAL, "org.freedesktop.login1.reboot": 0},
            "nobody may org.freedesktop.login1.reboot",
        ),
        ({}, ""),
    ],
)
def test_wrong_polkit_permissions_are_found(
    asked: dict[str, int], said: dict[str, int], found: str, tmp_path: Path
) -> None:
    asked.clear()
    asked.update(said)
    lines = differences(HOST, tmp_path)
    assert [each for each in lines if each[0] == "-"] == ([f"- polkit: {found}"] if found else [])
    if found:
        with pytest.raises(HostError, match=found):
            mend(HOST, tmp_path)
    else:
        assert mend(HOST, tmp_path) == {"removed": []}


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("name", "is_mended"),
    [
        (f"etc/{RULES}/10-by-hand.rules", True),
        (f"run/{RULES}/99-x.rules", True),
        (f"usr/share/{RULES}/10-package.rules", False),
    ],
)
def test_foreign_rules_about_our_users_are_removed(
    tmp_path: Path, name: str, is_mended: bool
) -> None:
    put(tmp_path, f"etc/{RULES}/50-polydev.rules", "polydev-controller")
    put(tmp_path, f"etc/{RULES}/40-sudo.rules", 'polkit.addAdminRule(() => ["unix-group:sudo"]);')
    assert differences(HOST, tmp_path) == []
    put(tmp_path, name, BY_HAND)
    assert differences(HOST, tmp_path) == [f"- polkit: /{name} names users of ours"]
    if is_mended:
        assert mend(HOST, tmp_path) == {"removed": [f"/{name}"]}
        assert differences(HOST, tmp_path) == []
    else:
        with pytest.raises(HostError, match=f"/{name} names users of ours"):
            mend(HOST, tmp_path)
        assert (tmp_path / name).exists()


def test_hint_lists_rule_files_if_no_rule_names_our_users(
    asked: dict[str, int], tmp_path: Path
) -> None:
    asked["ssh.service"] = 0
    put(tmp_path, f"etc/{RULES}/50-polydev.rules", "polkit.addRule(() => polkit.Result.YES);")
    with pytest.raises(HostError, match=r"the controller may start ssh\.service") as refused:
        mend(HOST, tmp_path)
    assert "journalctl -u polkit.service" in str(refused.value.hint)
    put(tmp_path, f"etc/{RULES}/70-all.rules", "polkit.addRule(() => polkit.Result.YES);")
    put(tmp_path, f"usr/share/{RULES}/60-package.rules", "// nothing")
    with pytest.raises(HostError) as refused:
        mend(HOST, tmp_path)
    files = f"/usr/share/{RULES}/60-package.rules, /etc/{RULES}/70-all.rules; then deploy again"
    assert str(refused.value.hint).endswith(files)


def test_rule_file_of_the_same_name_in_etc_wins(tmp_path: Path) -> None:
    put(tmp_path, f"etc/{RULES}/10-x.rules", "// nothing\n")
    put(tmp_path, f"usr/share/{RULES}/10-x.rules", BY_HAND)
    assert rules_of_others(tmp_path) == []


def test_process_of_runs_as_the_user() -> None:
    with polkit._process_of("nobody") as process:
        status = Path(f"/proc/{process}/status").read_text()
    assert f"\nUid:\t{pwd.getpwnam('nobody').pw_uid}\t" in status
    assert not Path(f"/proc/{process}").exists()
    with polkit._process_of("no-such-user") as process:
        assert process is None


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
