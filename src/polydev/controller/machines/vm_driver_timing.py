"""Intervals and timeouts of the driver, in seconds; a boot's deadlines are in `settings.vms`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Intervals:
    """Intervals between checks, and timeouts.

    tick, busy_tick     between two ticks: at rest, and while a VM starts or ends
    ask, ask_blind      between two requests to the agent of a VM that boots: once its console shows
                        that it has a network, and before that
    login               between two requests to the agent about a login under way
    ask_share           the pause is at least so many times as long as the last answer took: a
                        guest that boots needs its CPU
    retry, retry_most   pause after a failure: the first one; doubled each time, up to the second
    primed, prime_limit     how long a VM of the pool runs after its screen has answered, and in
                        total: the longer it runs, the more memory it takes while it waits
    screen_limit        until the screen of a resumed clone must answer
    pool_retry_most     the longest pause after VMs of the pool have failed
    start_tries         failed starts after which a VM counts as failed
    """

    tick: float = 1.0
    busy_tick: float = 0.25
    cleanup: float = 10.0
    prune: float = 600.0
    ask: float = 1.0
    ask_blind: float = 5.0
    ask_share: float = 3.0
    login: float = 1.0
    retry: float = 0.5
    retry_most: float = 15.0
    start_tries: int = 4
    primed: float = 0.3
    prime_limit: float = 60.0
    pool_retry_most: float = 600.0
    start_limit: float = 120.0
    stop_limit: float = 120.0
    look_limit: float = 15.0
    identify_limit: float = 60.0
    screen_limit: float = 45.0
    discard_limit: float = 60.0
    database_limit: float = 30.0
    step_limit: float = 400.0

    def retry_after(self, tries: int) -> float:
        """Return the pause after so many failures in a row."""
        return min(self.retry * 2.0 ** min(tries - 1, 30), self.retry_most)
