"""The error tree.

    Error
    ├── ConfigError             a recipe, inventory or setting is wrong (file and key path)
    ├── CommandError            a process ended with a status other than 0
    │   └── CommandTimeout      a process did not end in time
    ├── ImageError              an image could not be built, verified, found or promoted
    │   ├── ImageNotFound       a host has no such image
    │   ├── ImageUnreadable     the host's files of an image are damaged
    │   ├── BuildError          a layer or the root filesystem could not be made
    │   ├── BootError           a VM did not become ready
    │   └── SpecError           a booted image failed its specs
    │       └── SpecTimeout     specs did not end in time, and none failed before
    ├── VmError                 a virtual machine could not be started, asked or stopped
    │   ├── VmTimeout           it did not answer in time
    │   ├── FilesLeft           its files could not be removed
    │   └── NoScreen            it has no screen that can be shown now
    ├── MachineBusy             a VM got too little CPU time to judge it or its image
    ├── SessionError            a session could not be started, found or changed
    │   ├── SessionNotFound     there is no such session
    │   ├── SessionExpired      the session is over, or its VM is gone
    │   ├── UserNotFound        there is no such user
    │   ├── WrongProvider       the session is of another provider
    │   ├── TooManySessions     the user has as many sessions as are allowed
    │   └── CapacityError       no slot is free
    ├── CredentialsError        credentials could not be stored, read or used
    │   ├── CredentialsNotFound no such credentials are stored
    │   ├── CredentialsLocked   none of the host's keys can open them
    │   ├── CredentialsInUse    a session's VM uses them, and only one VM at a time may
    │   ├── CredentialsSealed   only the owner of another key can open them
    │   └── NoCredentialsKey    the host has no key to seal them with
    ├── WebhookError            an operation on webhooks failed
    │   ├── DeliveryNotFound    there is no such delivery
    │   └── EndpointNotFound    no endpoint of that name is configured
    ├── AccessError             the caller may not do this
    │   ├── NotAuthenticated    the request has no valid token or sign-in
    │   └── NotAllowed          the caller is known, but may not do this
    ├── AgentError              a VM's agent failed or did not answer
    │   ├── AgentUnreachable    the agent does not answer
    │   ├── ProtocolError       the agent's answer is not valid
    │   ├── LoginFailed         the login of a tool failed
    │   └── LoginRefused        the agent does not accept the input for a login
    ├── LabError                a lab could not be started, reached or ended
    └── DeployError             a deployment failed, or a host could not be reached
        ├── DeploymentNotFound  there is no such deployment
        ├── LockHeld            another deployment holds the host's lock
        ├── HealthGateFailed    checks failed after the deployment
        └── RollbackFailed      the previous state could not be restored

Every error says what failed and on what; the hint gives the next command. One place in each
program makes text or a response of them: `polydev.cli.edge` for verbs (exit status 1, no
traceback), and one handler in each service.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

STDERR_TAIL_LINES = 20


class Error(Exception):
    """Base of all errors that this project raises on purpose."""

    code = "error"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_dict(self) -> dict[str, object]:
        """Fields for `--json`: `error` (stable code), `message`, `hint`."""
        return {"error": self.code, "message": self.message, "hint": self.hint}


class ConfigError(Error):
    code = "config"

    def __init__(
        self, message: str, hint: str | None = None, *, file: Path | None = None, key: str = ""
    ) -> None:
        place = ": ".join(part for part in (str(file) if file else "", key) if part)
        super().__init__(f"{place}: {message}" if place else message, hint)
        self.file = file
        self.key = key


class CommandError(Error):
    code = "command"

    def __init__(
        self, argv: Sequence[str], status: int, stderr: str, hint: str | None = None
    ) -> None:
        tail = "\n".join(stderr.strip().splitlines()[-STDERR_TAIL_LINES:])
        how = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
        super().__init__(f"{shlex.join(argv)} {how}" + (f":\n{tail}" if tail else ""), hint)
        self.argv = tuple(argv)
        self.status = status
        self.stderr_tail = tail


class CommandTimeout(CommandError):
    code = "command-timeout"

    def __init__(self, argv: Sequence[str], timeout_seconds: float, stderr: str) -> None:
        super().__init__(argv, -9, stderr)
        self.message = f"{shlex.join(argv)} did not end within {timeout_seconds:g} s"
        self.args = (self.message,)


class ImageError(Error):
    code = "image"


class ImageNotFound(ImageError):
    code = "image-not-found"


class ImageUnreadable(ImageError):
    code = "image-unreadable"


class BuildError(ImageError):
    code = "build"


class BootError(ImageError):
    code = "boot"


class SpecError(ImageError):
    code = "spec"


class SpecTimeout(SpecError):
    """The image may be at fault, or the machine too busy."""


class VmError(Error):
    code = "vm"


class VmTimeout(VmError):
    """It may be slow, or hang."""


class NoScreen(VmError):
    """It boots, or is paused."""

    code = "no-screen"


class MachineBusy(Error):
    code = "machine-busy"

    def __init__(self, what: str, wait: object) -> None:
        super().__init__(
            f"the machine is too busy: {wait}; {what}",
            "try again when the machine is quiet (`uptime` shows its load); "
            "this says nothing about the image",
        )


class FilesLeft(VmError):
    """Files of a VM could not be removed. No other VM may use its folder."""


class SessionError(Error):
    code = "session"


class SessionNotFound(SessionError):
    code = "session-not-found"


class SessionExpired(SessionError):
    code = "session-expired"


class UserNotFound(SessionError):
    code = "user-not-found"


class WrongProvider(SessionError):
    code = "wrong-provider"


class TooManySessions(SessionError):
    code = "too-many-sessions"


class CapacityError(SessionError):
    code = "no-free-slot"


class CredentialsError(Error):
    code = "credentials"


class CredentialsNotFound(CredentialsError):
    code = "credentials-not-found"


class CredentialsLocked(CredentialsError):
    code = "credentials-locked"


class CredentialsInUse(CredentialsError):
    code = "credentials-in-use"


class CredentialsSealed(CredentialsError):
    code = "credentials-sealed"


class NoCredentialsKey(CredentialsError):
    code = "no-credentials-key"


class WebhookError(Error):
    code = "webhook"


class DeliveryNotFound(WebhookError):
    code = "webhook-delivery-not-found"


class EndpointNotFound(WebhookError):
    code = "webhook-endpoint-not-found"


class AccessError(Error):
    code = "access"


class NotAuthenticated(AccessError):
    code = "not-authenticated"


class NotAllowed(AccessError):
    code = "not-allowed"


class AgentError(Error):
    code = "agent"


class AgentUnreachable(AgentError):
    code = "agent-unreachable"


class ProtocolError(AgentError):
    code = "agent-protocol"


class LoginFailed(AgentError):
    code = "login-failed"


class LoginRefused(AgentError):
    code = "login-refused"


class LabError(Error):
    code = "lab"


class DeployError(Error):
    code = "deploy"


class DeploymentNotFound(DeployError):
    code = "deployment-not-found"


class LockHeld(DeployError):
    code = "lock-held"


class HealthGateFailed(DeployError):
    code = "health-gate"


class RollbackFailed(DeployError):
    code = "rollback-failed"
