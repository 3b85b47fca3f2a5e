"""The in-VM agent: says over HTTP how far this VM is and what in it does not work.

It starts while the guest boots, on emulated CPUs some twenty times slower than real ones, so
its modules import only what is cheap at start-up. Types come from `messages`, which is for
readers, type checkers and the host; the guest never loads it. The flow:

    settings -> server -> http (bytes to request) -> routes -> health -> probes, systemd, boot
                                                            -> metrics (only when asked)
                                                            -> login (only when asked)

A login itself runs in a service of its own, whose program is `login_run`:

    login_run -> login_course -> login_tools, terminal; browser; login_state -> (a file) -> login
"""
