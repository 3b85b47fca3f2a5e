"""Errors of the agent. None of them ends the process."""

from __future__ import annotations


class CheckFailed(Exception):
    """A part of the guest does not answer as it should.

    The message is the detail that the host shows: what was found, and where.
    """


class RequestRefused(Exception):
    """A client's request is refused, with an HTTP status and a reason."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
