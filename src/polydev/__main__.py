"""The process of `./inv`. While the verbs load there is nothing to undo, so Ctrl-C just ends it."""

from __future__ import annotations

import signal


def main() -> None:
    # One that was started to ignore Ctrl-C, as a shell's jobs are, goes on ignoring it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from polydev.invoke_program import main

    main()


if __name__ == "__main__":
    main()
