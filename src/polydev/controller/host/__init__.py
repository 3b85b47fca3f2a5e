"""The host's own health: what it is measured at, how that is kept, and who is told of it."""
