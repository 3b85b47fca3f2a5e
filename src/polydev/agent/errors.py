"""What can go wrong in the agent; nothing of it ends the process."""

from __future__ import annotations


class CheckFailed(Exception):
    """A part of the guest does not answer as it should.

    The message is the detail that the host is shown: what was seen, and where.
    """


class RequestRefused(Exception):
    """A client sent no acceptable request; carries the HTTP status that it gets, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
