"""The host's health: measurements, samples, history, alerts and messages about them."""
