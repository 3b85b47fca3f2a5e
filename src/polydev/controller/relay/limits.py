"""Limits of viewers: how many there may be, and how much they may send."""

MOST_VIEWERS = 8  # of one session
MOST_SPECTATORS = 4  # of these, read-only ones: the owner always finds a place
# For all viewers of one user. A mouse sends at most a thousand, and a delayed one a few at once.
FRAMES_PER_SECOND = 4000
FRAMES_BURST = 8000
