"""`polydev-host VERB …`, and `python3 -m polydev.hosttool VERB …`."""

from __future__ import annotations

import sys

from polydev.hosttool.cli import main

if __name__ == "__main__":
    sys.exit(main())
