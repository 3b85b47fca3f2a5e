"""Users as sysusers.d declares them: made, and set back where somebody changed one by hand."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pyinfra.api.command import StringCommand
from pyinfra.api.facts import FactBase
from pyinfra.context import host

from polydev.deploys.operations import told
from polydev.deploys.typed import Commands, operation

NO_LOGIN = "/usr/sbin/nologin"
NO_PASSWORD = "!*"  # noqa: S105  (what systemd-sysusers writes: no password fits)
# usermod moves no home under a process, and these are never done: it must not see them.
UNSEEN = "unshare --fork --pid --mount-proc"


@dataclass(frozen=True)
class Account:
    """A user, alone in a group of the same name and in no other one.

    `group` is the primary group, `others` are further groups, `members` are further users of the
    user's own group.
    """

    name: str
    comment: str
    home: str = "/"
    shell: str = NO_LOGIN
    is_locked: bool = True
    group: str = ""
    others: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    @property
    def declared(self) -> Account:
        return replace(self, group=self.group or self.name)


class Accounts(FactBase[dict[str, Account]]):
    """Those of these users that the host has, and whether nobody can log in by a password.

    The password itself stays on the host.
    """

    def command(self, users: tuple[str, ...]) -> str:
        names = shlex.join(users)
        locked = '{ print "locked:" $1 ":" (substr($2, 1, 1) ~ /[!*]/ ? "yes" : "no") }'
        return (
            "getent passwd | sed s/^/passwd:/; getent group | sed s/^/group:/; "
            f"getent shadow {names} | awk -F: {shlex.quote(locked)}"
        )

    @staticmethod
    def default() -> dict[str, Account]:
        return {}

    def process(self, output: Iterable[str]) -> dict[str, Account]:
        tables: dict[str, list[list[str]]] = {}
        for line in output:
            table, *fields = line.split(":")
            tables.setdefault(table, []).append(fields)
        # name, password, gid, members
        groups = [each for each in tables.get("group", []) if len(each) >= 4]
        names = {gid: name for name, _, gid, *_ in groups}
        members = {name: _names(text) for name, _, _, text, *_ in groups}
        # name, password, uid, gid, comment, home, shell
        users = [each for each in tables.get("passwd", []) if len(each) >= 7]
        primary = {name: names.get(gid, gid) for name, _, _, gid, *_ in users}
        locked = {name: said == "yes" for name, said, *_ in tables.get("locked", [])}
        return {
            name: Account(
                name=name,
                comment=comment,
                home=home,
                shell=shell,
                is_locked=locked.get(name, False),
                group=primary[name],
                others=tuple(
                    sorted(each for each in members if name in members[each] and each != name)
                ),
                members=tuple(
                    sorted(
                        {*members.get(name, ()), *(u for u, g in primary.items() if g == name)}
                        - {name}
                    )
                ),
            )
            for name, _, _, _, comment, home, shell in users
        }


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def differences(now: Account, wanted: Account) -> Iterator[tuple[str, str, str]]:
    """Yield each difference of an account from its declaration: word, what is, what is to be."""
    for word, of in (
        ("comment", lambda each: each.comment),
        ("home", lambda each: each.home),
        ("shell", lambda each: each.shell),
        ("password", lambda each: "locked" if each.is_locked else "not locked"),
        ("group", lambda each: each.group),
        ("further groups", lambda each: ", ".join(each.others) or "none"),
        ("further members of its group", lambda each: ", ".join(each.members) or "none"),
    ):
        if of(now) != of(wanted):
            yield word, of(now), of(wanted)


def mending(now: Account, wanted: Account) -> Iterator[str]:
    """Commands that set an account back."""
    name = wanted.name
    options: tuple[tuple[bool, list[str]], ...] = (
        (now.comment != wanted.comment, ["--comment", wanted.comment]),
        (now.shell != wanted.shell, ["--shell", wanted.shell]),
        (not now.is_locked, ["--password", NO_PASSWORD]),
        (now.group != wanted.group, ["--gid", wanted.group]),
        (now.others != wanted.others, ["--groups", ""]),
    )
    words = [word for is_wrong, option in options if is_wrong for word in option]
    if words:
        yield shlex.join(["usermod", *words, name])
    if now.home != wanted.home:
        yield f"{UNSEEN} {shlex.join(['usermod', '--home', wanted.home, name])}"
    if now.members:
        yield shlex.join(["gpasswd", "--members", "", name])
    # A member with this primary group gets back a group of their own, as every user on Debian has.
    for member in now.members:
        if_primary = f'[ "$(id -gn {shlex.quote(member)})" != {shlex.quote(name)} ]'
        yield f"{if_primary} || {shlex.join(['usermod', '--gid', member, member])}"


@operation
def accounts_as_in(file: str, wanted: tuple[Account, ...]) -> Commands:
    """These users, whom a file of sysusers.d describes, are there as declared."""
    there: dict[str, Account] = host.get_fact(Accounts, users=tuple(each.name for each in wanted))
    missing = [each.name for each in wanted if each.name not in there]
    told("\n".join(f"+ user {name}" for name in missing))
    wrong = []
    for each in wanted:
        now = there.get(each.name)
        if now is None:
            continue
        for word, was, is_to_be in differences(now, each.declared):
            told(f"- user {each.name}: {word} {was}\n+ user {each.name}: {word} {is_to_be}")
            wrong.append((now, each.declared))
    if not missing and not wrong:
        host.noop("all users are as they should be")
        return
    yield StringCommand(f"systemd-sysusers {shlex.quote(file)}")
    for now, each in dict.fromkeys(wrong):
        for command in mending(now, each):
            yield StringCommand(command)
