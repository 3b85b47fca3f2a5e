"""A lab is small."""

from __future__ import annotations

slots = 8
journal_max_mib = 64
deadman_seconds = 20
