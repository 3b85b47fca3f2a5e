"""Our users, as host.json declares them and as the host has them: compared and corrected.

Each has a UID and GID that nobody else has, is alone in its own group, cannot log in, and has no
rights through sudo.
"""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polydev.durable_files import write_durably
from polydev.hosttool.errors import HostError
from polydev.hosttool.sudoers import ETC, applies_to, is_only_about, rules_by_file

SYSUSERS = "/etc/sysusers.d/polydev.conf"
NO_LOGIN = "/usr/sbin/nologin"
NO_PASSWORD = "!*"  # noqa: S105  (what systemd-sysusers writes: no password fits)
# The ids of people begin above it.
HIGHEST_ID = 999


@dataclass(frozen=True)
class Account:
    """A user: by default alone in a group of the same name, and in no other group.

    `group` is the primary group, `others` are further groups, `members` are further users of the
    user's own group, `admins` may change these; with `is_closed` no password lets others join the
    group. `ids` says whether the numbers are shared, `sudo` names files that give it rights.
    """

    name: str
    comment: str
    home: str = "/"
    shell: str = NO_LOGIN
    is_locked: bool = True
    group: str = ""
    others: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()
    is_closed: bool = True
    ids: str = "of its own"
    sudo: tuple[str, ...] = ()

    @property
    def declared(self) -> Account:
        return replace(self, group=self.group or self.name)


def accounts_of(host: dict[str, object]) -> list[Account]:
    """Return the accounts that host.json declares; none in that of an earlier version."""
    known = host.get("accounts")
    if not isinstance(known, list):
        return []
    return [_account(each).declared for each in known]


def _account(document: dict[str, Any]) -> Account:
    """Convert lists to tuples, so that accounts can be compared."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    return Account(**values)


def differences(wanted: list[Account], etc: Path = ETC) -> list[str]:
    """Return a diff, `-` for what the host has and `+` for what is declared; [] if equal."""
    there = read(etc)
    found = []
    for each in wanted:
        now = there.get(each.name)
        if now is None:
            found.append(f"+ user {each.name}")
            continue
        for word, was, is_to_be in _compared(now, each):
            found += [f"- user {each.name}: {word} {was}", f"+ user {each.name}: {word} {is_to_be}"]
    return found


def _compared(now: Account, wanted: Account) -> Iterator[tuple[str, str, str]]:
    """Yield each difference of an account: property, actual value, declared value."""
    for word, of in (
        ("comment", lambda each: each.comment),
        ("home", lambda each: each.home),
        ("shell", lambda each: each.shell),
        ("password", lambda each: "locked" if each.is_locked else "not locked"),
        ("ids", lambda each: each.ids),
        ("group", lambda each: each.group),
        ("further groups", lambda each: ", ".join(each.others) or "none"),
        ("further members of its group", lambda each: ", ".join(each.members) or "none"),
        ("administrators of its group", lambda each: ", ".join(each.admins) or "none"),
        ("password of its group", lambda each: "none" if each.is_closed else "set"),
        ("sudo", lambda each: ", ".join(each.sudo) or "none"),
    ):
        if of(now) != of(wanted):
            yield word, of(now), of(wanted)


# Read


def read(etc: Path = ETC) -> dict[str, Account]:
    """Read all users of the host's own tables; of passwords only whether one can fit."""
    # name, password, gid, members
    groups = _table(etc / "group", 4)
    names = {gid: name for name, _, gid, *_ in groups}
    # name, password, administrators, members
    shadows: dict[str, tuple[str, ...]] = {name: ("", "", "", "") for name, *_ in groups}
    shadows |= {name: (name, *rest) for name, *rest in _table(etc / "gshadow", 4)}
    members = {name: (*_names(text), *_names(shadows[name][3])) for name, _, _, text, *_ in groups}
    passwords = {name: (word, shadows[name][1]) for name, word, *_ in groups}
    # name, password, uid, gid, comment, home, shell
    users = _table(etc / "passwd", 7)
    primary = {name: names.get(gid, gid) for name, _, _, gid, *_ in users}
    locked = {name: word[:1] in ("!", "*") for name, word, *_ in _table(etc / "shadow", 2)}
    own = {name: gid for name, _, gid, *_ in groups}
    uids, gids = Counter(row[2] for row in users), Counter(row[2] for row in groups)
    granted = rules_by_file(etc)
    found = {}
    for name, _, uid, gid, comment, home, shell, *_ in users:
        others = tuple(sorted(each for each in members if name in members[each] and each != name))
        is_shared = uids[uid] > 1 or gids[gid] > 1 or gids[own.get(name, gid)] > 1
        account = Account(
            name=name,
            comment=comment,
            home=home,
            shell=shell,
            is_locked=locked.get(name, False),
            group=primary[name],
            others=others,
            members=tuple(
                sorted(
                    {*members.get(name, ()), *(u for u, g in primary.items() if g == name)} - {name}
                )
            ),
            admins=tuple(sorted(_names(shadows[name][2]))) if name in shadows else (),
            is_closed=all(word in ("", "x") or word[0] in "!*" for word in passwords.get(name, ())),
            ids=f"{uid}:{gid}, of others too" if is_shared else Account.ids,
        )
        words = {("username", "ALL"), ("username", name), ("userid", uid), ("usergid", gid)}
        words |= {("usergroup", each) for each in (account.group, *others)}
        by = tuple(
            file for file, rules in granted.items() if any(applies_to(r, words) for r in rules)
        )
        found[name] = replace(account, sudo=by)
    return found


def _table(file: Path, fields: int) -> list[list[str]]:
    try:
        lines = file.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    rows = (line.split(":") for line in lines)
    return [row for row in rows if len(row) >= fields]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


# Correct


def mend(wanted: list[Account], etc: Path = ETC) -> dict[str, object]:
    """Create missing accounts and correct the others. Raises HostError `accounts-wrong`."""
    _run(["systemd-sysusers", SYSUSERS])
    there = read(etc)
    wrong = {each.name for each in wanted if there[each.name] != each}
    set_back([each for each in wanted if each.name in wrong], there, etc)
    for each in wanted:
        for command in correcting_commands(there[each.name], each):
            _run(command)
    names = {each.name for each in wanted}
    for file in map(Path, sorted({file for name in names for file in there[name].sudo})):
        if is_only_about(file, names):
            file.unlink()
    if left := differences(wanted, etc):
        raise HostError(
            "accounts-wrong",
            "users are not as declared: "
            + ("; ".join(line for line in left if line[0] == "-") or "; ".join(left)),
            "on the host, as root: `visudo -f FILE` where sudo is named, else `usermod`",
        )
    return {"mended": sorted(wrong)}


def set_back(wrong: list[Account], there: dict[str, Account], etc: Path = ETC) -> None:
    """Write the lines of these users and of their groups as declared.

    usermod does not do: it refuses a user who has a process, as one with root's UID always has, and
    it changes the owner of all files below the home, which may be /.
    """
    with (etc / ".pwd.lock").open("a") as lock:  # that of all programs that write these files
        fcntl.lockf(lock, fcntl.LOCK_EX)
        users, groups = _table(etc / "passwd", 7), _table(etc / "group", 4)
        own = {each.name for each in wrong}
        for each in wrong:
            user = next(row for row in users if row[0] == each.name)
            group = next(row for row in groups if row[0] == each.name)
            if there[each.name].ids != each.ids:
                user[2] = group[2] = _own_id(each, users, groups)
            user[3:] = [group[2], each.comment, each.home, each.shell]
            group[1] = "x"
        shadows = _table(etc / "gshadow", 4)
        for row in shadows:
            row[1:3] = [NO_PASSWORD, ""]
        _write_rows(etc / "gshadow", [row for row in shadows if row[0] in own])
        _write_rows(etc / "group", [row for row in groups if row[0] in own])
        _write_rows(etc / "passwd", [row for row in users if row[0] in own])


def _write_rows(file: Path, rows: list[list[str]]) -> None:
    """Replace the rows with the same names; other lines stay as they are."""
    if not rows:
        return
    fresh = {row[0]: ":".join(row) for row in rows}
    lines = file.read_text(errors="surrogateescape").splitlines()
    kept = "".join(f"{fresh.get(line.partition(':')[0], line)}\n" for line in lines)
    write_durably(file, kept.encode(errors="surrogateescape"))


def _own_id(account: Account, users: list[list[str]], groups: list[list[str]]) -> str:
    """Return an id that no other user or group has; the account's former one, if it is known."""
    taken = {row[2] for row in (*users, *groups) if row[0] != account.name}
    own = [row[2] for row in (*groups, *users) if row[0] == account.name]
    home = Path(account.home)
    own += [str(home.stat().st_uid)] if account.home != "/" and home.is_dir() else []
    wanted = map(str, range(HIGHEST_ID, 0, -1))
    fits = (each for each in (*own, *wanted) if each not in taken)
    return next(each for each in fits if 0 < int(each) <= HIGHEST_ID)


def correcting_commands(now: Account, wanted: Account) -> Iterator[list[str]]:
    """Yield commands that correct what is not in an account's own lines."""
    name = wanted.name
    if now.ids != wanted.ids and wanted.home != "/":
        yield ["chown", "--recursive", f"{name}:{name}", wanted.home]
    if not now.is_locked:
        yield ["usermod", "--password", NO_PASSWORD, name]
    if now.others != wanted.others:
        yield ["usermod", "--groups", "", name]
    if now.members:
        yield ["gpasswd", "--members", "", name]
    # A member with this primary group gets back a group of their own, as every user on Debian has.
    for member in now.members:
        if_primary = 'test "$(id -gn "$1")" != "$2" || usermod --gid "$1" "$1"'
        yield ["sh", "-c", if_primary, "sh", member, name]


def _run(argv: list[str]) -> None:
    import subprocess

    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostError("accounts-wrong", f"{' '.join(argv[:6])}: {done.stderr.strip()[-500:]}")
