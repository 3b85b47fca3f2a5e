"""The error of the host tool, in the form in which the operator's side gets it."""

from __future__ import annotations


class HostError(Exception):
    """A verb failed; `code` is stable, `message` says what failed, `hint` what to do next."""

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def as_dict(self) -> dict[str, object]:
        return {"error": self.code, "message": self.message, "hint": self.hint}
