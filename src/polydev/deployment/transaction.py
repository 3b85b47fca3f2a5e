"""One change of one host, completed or undone: lock, backup, change, health gate, record.

    deploy    lock → plan → backup → operations → health gate → record
    rollback  lock → choose → backup → restore → health gate → record

If anything fails after the backup, the backup is restored and the health gate runs again; the
record has both results. If the operator's process dies, the next deployment does this for it.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar

from polydev.clock_difference import WARNING_SECONDS, offset_text
from polydev.deployment import timeouts_and_retention
from polydev.deployment.connection import (
    TOOL,
    HostConnection,
    HostRefused,
    TookTooLong,
    Unreachable,
)
from polydev.deployment.history import records_of
from polydev.deployment.lock import HostLock, wait_for_lock
from polydev.deployment.pyinfra_process import DescribedHost
from polydev.deployment.restore import RestoreGoesOn, Say, restore_backup, until_reached
from polydev.deployment_id import utc_now
from polydev.deployment_records import (
    Record,
    Status,
    current_state,
    newest_first,
)
from polydev.errors import DeployError, Error, HealthGateFailed, LockHeld, RollbackFailed
from polydev.hosttool.restore_job import RestoreJob
from polydev.progress import Step, Steps

log = logging.getLogger(__name__)

T = TypeVar("T")


class Transaction:
    """A running change: its record, its backup, its undoing.

    `earlier` has the host's records from before this change, once it is locked.
    """

    def __init__(
        self,
        connection: HostConnection,
        host: DescribedHost,
        record: Record,
        steps: Steps,
        log_file: IO[str],
    ) -> None:
        self.connection = connection
        self.host = host
        self.record = record
        self.steps = steps
        self.log_file = log_file
        self.earlier: list[Record] = []

    @contextmanager
    def locked(self, purpose: str, wait_seconds: float = 0) -> Iterator[None]:
        """Hold the host's lock; first undo what deployments that died there left.

        Waits for a lock that is held. Raises LockHeld.
        """
        self._lock = wait_for_lock(lambda: self._new_lock(purpose), wait_seconds, self.steps.note)
        try:
            if stale := self._lock.stale:
                self.steps.note(
                    f"{self.host.name}: deployment {stale.get('id')} of {stale.get('owner')} died"
                )
            self._compare_clocks()
            records = records_of(self.connection)
            self._require_new(records)
            # Records name deployments that died even if their lock was broken since.
            died = [each for each in newest_first(records) if each.status == "running"]
            for each in died:
                self._recover(each)
            self.earlier = records_of(self.connection) if died else records
            self.record.previous = current_state(self.earlier)
            self.record.state = self.record.previous
            yield
        finally:
            self._lock.release()

    def _compare_clocks(self) -> None:
        offset = self._lock.clock_offset_seconds
        if abs(offset) >= WARNING_SECONDS:
            self.steps.note(
                f"warning: the clock of {self.host.name} is {offset_text(offset)}: ids and times "
                "of deployments are misleading, their order is right; compare `timedatectl` on both"
            )

    def _require_new(self, records: list[Record]) -> None:
        """Raise DeployError if the id is used already, as after the clock was set back."""
        if any(each.id == self.record.id for each in records):
            raise DeployError(
                f"{self.host.name} already has a deployment {self.record.id}: "
                "this machine's clock was set back",
                "run it again; `timedatectl` shows the clock",
            )

    def _new_lock(self, purpose: str, *, again: bool = False) -> HostLock:
        record = self.record
        return HostLock(self.host.target, record.id, record.who, purpose, again=again)

    def require_lock(self) -> None:
        """Raise DeployError if the lock is no longer ours: somebody broke it."""
        if not self._lock.is_held:
            raise DeployError(
                f"{self.host.name}: the lock was broken, or its connection was lost",
                "./inv deployments shows who deploys there now",
            )

    def permit_operations(self) -> None:
        """Allow pyinfra's commands on the host, until the next restore begins."""
        self.connection.tool("operations", "permit", "--id", self.record.id)

    def run(self, change: Callable[[], None] | None, *, gate: bool) -> Record:
        """Back up, change, run the gate, record; undo on failure. Without `change`, no backup."""
        try:
            if change is not None:
                self._write("running")
                with self.steps.step(f"{self.host.name}: backup"):
                    self._back_up()
                if self.record.kind == "deploy":
                    self.record.state = self.record.id
                change()
            if gate:
                self._gate()
            self._write("succeeded")
        except BaseException as error:  # Ctrl-C is a failure like any other
            self._fail(error)
        if change is not None:
            self._prune()
        return self.record

    def restore(self, backup: str, step: Step) -> dict[str, Any]:
        """Restore a backup on the host; return what that changed.

        Raises HostRefused, Unreachable, RestoreGoesOn, LockHeld.
        """
        say = self._reporter(step)
        found = restore_backup(
            self.connection,
            RestoreJob(self.record.id, backup),
            require_lock=self._reacquire_lock,
            say=say,
            patience_seconds=self.patience_seconds,
        )
        with suppress(HostRefused):  # no timer was started, or it ran out
            self._patiently(lambda: self.connection.tool("deadman", "confirm"), say)
        self._log({"event": "restore", "backup": backup, "found": found})
        return found

    @property
    def patience_seconds(self) -> float:
        """Time to wait for the host: its dead-man timer may have to revert what shut us out."""
        return self.host.deadman_seconds + 60

    def _patiently(self, ask: Callable[[], T], say: Say) -> T:
        return until_reached(ask, say, self.patience_seconds)

    def _reporter(self, step: Step) -> Say:
        """Return a function that shows what the host does, beside the step or as a line."""
        shown = ""

        def say(detail: str) -> None:
            nonlocal shown
            step.say(detail)
            if detail != shown and not self.steps.console.is_terminal:
                self.steps.note(f"  {detail}")
            shown = detail

        return say

    def _reacquire_lock(self) -> None:
        """Acquire the lock again if its connection was lost.

        Raises LockHeld if somebody else has it now, or has undone this change meanwhile.
        """
        if self._lock.is_held:
            return
        self._lock.release()
        self._lock = self._new_lock("restore", again=True)
        for found in records_of(self.connection):
            if found.id == self.record.id and found.status != "running":
                raise LockHeld(
                    f"{self.host.name}: another deployment held the lock meanwhile: "
                    f"{found.reason or found.status}",
                    "./inv deployments shows what was done",
                )

    def _back_up(self) -> None:
        words = ["backup", "create", "--id", self.record.id]
        self.connection.tool(
            *words,
            document=dict(self.host.scope),
            timeout_seconds=timeouts_and_retention.BACKUP_SECONDS,
        )
        self.record.backup = True
        self._write("running")

    def _gate(self, patience_seconds: float = 0) -> None:
        """Raise HealthGateFailed with each check that fails."""

        def ask() -> dict[str, Any]:
            words = ["health", "--seconds", str(timeouts_and_retention.GATE_SECONDS)]
            return self.connection.tool(
                *words, timeout_seconds=timeouts_and_retention.GATE_SECONDS + 60
            )

        with self.steps.step(f"{self.host.name}: health gate") as step:
            found = until_reached(ask, step.say, patience_seconds)
            self._log({"event": "gate", **found})
            self.record.gate = found
            if not found["ok"]:
                wrong = [
                    f"{check['name']}: {check['detail']}"
                    for check in found["checks"]
                    if not check["ok"]
                ]
                raise HealthGateFailed(
                    f"{self.host.name} failed the health gate: {'; '.join(wrong)}"
                )

    def _fail(self, error: BaseException) -> None:
        """Undo the change, record both results, and raise the first error."""
        reason = _reason_of(error)
        hint = error.hint if isinstance(error, Error) else None
        self.record.reason = reason
        self._log({"event": "failed", "reason": reason})
        with _ignoring_signals():
            status, words = self._undo() if self.record.backup else ("failed", "nothing changed")
            self.record.state = self.record.previous if status != "rollback-failed" else None
            with suppress(Error, OSError):
                # Do not wait again for a host that could not be reached for the restore.
                patience = 0 if status == "rollback-failed" else self.patience_seconds
                until_reached(lambda: self._write(status), log.debug, patience)
        message = f"{self.record.kind} {self.record.id} of {self.host.name} failed: {reason}"
        if status == "rollback-failed":
            raise RollbackFailed(
                f"{message}\nand restoring the backup failed too: {words}",
                f"log in to the host and run: sudo {TOOL} restore --id {self.record.id}",
            ) from error
        kind = type(error) if isinstance(error, DeployError) else DeployError
        raise kind(f"{message}\n{words}", hint or f"see {self.log_file.name}") from error

    def _undo(self) -> tuple[Status, str]:
        try:
            with self.steps.step(f"{self.host.name}: restore the backup") as step:
                self.connection.wait_until_back(self.patience_seconds)
                restored = self.restore(self.record.id, step)
            failed_gate = self.record.gate
            self._gate(self.patience_seconds)
            self.record.undone = {"restored": restored, "gate": self.record.gate}
            self.record.gate = failed_gate
        except LockHeld as held:
            # The holder of the lock has found this deployment dead.
            words = f"{self.record.reason}\n{held.message}, and restores the host"
            raise LockHeld(f"{self.record.kind} {self.record.id} failed: {words}") from held
        except RestoreGoesOn as lost:
            # The next deployment records how it ended.
            words = (
                f"{self.record.reason}\n{lost.message}; the next deployment records how it ended"
            )
            raise RestoreGoesOn(
                f"{self.record.kind} {self.record.id} failed: {words}", lost.hint
            ) from lost
        except (Error, OSError) as error:
            words = _reason_of(error)
            self.record.undone = {"failed": words}
            return "rollback-failed", words
        return (
            "rolled-back",
            f"the host was restored to {self.record.previous or 'its state before'}",
        )

    def _recover(self, died: Record) -> None:
        """Undo a deployment that died: restore its backup, run the gate, complete its record.

        Failures are recorded only: the present deployment may repair the host.
        """
        died.status, died.state, died.undone = "interrupted", died.previous, {}
        with self.steps.step(f"{self.host.name}: undo {died.id}, which died") as step:
            if died.backup:
                self._restore_after(died, step)
        own, self.record = self.record, died
        try:
            self._gate()
        except HealthGateFailed:
            died.status = "rollback-failed"
        finally:
            self.record = own
        died.undone, died.gate = {**died.undone, "gate": died.gate}, None
        died.reason = f"its operator's process ended; the host was restored by {self.record.id}"
        died.finished_at = utc_now()
        self._put(died)

    def _restore_after(self, died: Record, step: Step) -> None:
        try:
            died.undone = {"restored": self.restore(died.id, step)}
        except (Unreachable, TookTooLong, LockHeld):
            raise
        except DeployError as error:
            died.undone = {"failed": error.message}
            died.status, died.state = "rollback-failed", None

    def _prune(self) -> None:
        # Failing to remove old files does not fail the deployment.
        with suppress(Error):
            self.connection.tool(
                "backup", "prune", "--keep", str(timeouts_and_retention.KEPT_BACKUPS)
            )
            self.connection.tool(
                "release", "prune", "--keep", str(timeouts_and_retention.KEPT_RELEASES)
            )
            self.connection.tool("image", "prune")

    def _write(self, status: Status) -> None:
        self.record.status = status
        self.record.finished_at = None if status == "running" else utc_now()
        self._put(self.record)

    def _put(self, record: Record) -> None:
        document = record.model_dump(mode="json", by_alias=True)
        self._log({"event": "record", **document})
        record.number = self.connection.tool("record", "write", document=document).get("number")

    def _log(self, event: Mapping[str, Any]) -> None:
        self.log_file.write(json.dumps(event) + "\n")
        self.log_file.flush()


def _reason_of(error: BaseException) -> str:
    if isinstance(error, Error):
        return error.message
    return "interrupted" if isinstance(error, KeyboardInterrupt) else repr(error)


@contextmanager
def _ignoring_signals() -> Iterator[None]:
    """Ignore signals while the host is restored, so that a second Ctrl-C does not stop that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = (
        signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.signal(signal.SIGTERM, signal.SIG_IGN),
    )
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
