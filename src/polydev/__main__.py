"""The process of `./inv`. While the verbs load there is nothing to undo, so Ctrl-C just ends it."""

from __future__ import annotations

import os
import signal


def main() -> None:
    # One that was started to ignore Ctrl-C, as a shell's jobs are, goes on ignoring it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Rich reads it when it is imported, and would print nothing in no columns.
    if not os.environ.get("COLUMNS", "").strip("0"):
        os.environ.pop("COLUMNS", None)
    from polydev.invoke_program import main

    main()


if __name__ == "__main__":
    main()
