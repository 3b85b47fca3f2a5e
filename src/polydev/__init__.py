"""Polydev Host: golden browser-VM images, hosts and sessions as testable code."""

__version__ = "0.1.0"
