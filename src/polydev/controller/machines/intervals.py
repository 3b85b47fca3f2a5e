"""How often the driver looks, and how long it waits for others. All in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Intervals:
    """Pauses, and limits of time.

    tick, busy_tick     between two looks at everything: at rest, and while a VM starts or ends
    ask, ask_blind      between two questions to the agent of a VM that starts: when its console
                        says that it has a network, and before that
    login               between two questions to the agent about a login that is under way
    ask_share           so many times what the last answer took are left in between: a guest
                        that is still starting needs its CPU more than we do
    retry, retry_most   after a failure: at first, and doubled up to
    keep_news           for so long the news of a session can be read after its end
    primed, prime_limit     how long a VM of the pool runs on after its screen greeted, and in all:
                        each moment costs memory for as long as it waits
    screen_limit        for a clone's screen, once it runs
    pool_retry_most     the longest pause after VMs of the pool that failed
    start_tries         starts of a VM that the hypervisor may refuse before it counts as failed
    """

    tick: float = 1.0
    busy_tick: float = 0.25
    cleanup: float = 10.0
    prune: float = 600.0
    keep_news: float = 7 * 24 * 3600.0
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
        """The pause after so many failures in a row."""
        return min(self.retry * 2.0 ** min(tries - 1, 30), self.retry_most)
