"""The in-VM agent: says over HTTP how far this VM is and what in it does not work.

Types come from `messages`, which is for readers, type checkers and the host; the guest never loads
it. What starts in each clone (`identity`) or while a user waits (`login_run`) imports little: an
emulated CPU is some twenty times slower than a real one. The flow:

    settings -> server (the standard library's) -> routes -> health -> probes, systemd, boot
                                                          -> metrics (only when asked)
                                                          -> login_routes (only when asked)
    login_routes -> login -> login_state (of a file that the login's runner writes)
                 -> credentials_client -> (a socket) -> credentials_run -> credentials

A login itself runs in a service of its own, whose program is `login_run`:

    login_run -> login_process, login_terminal, browser
              -> login_course -> login_answers, terminal; login_state -> (a file) -> login
              -> login_confirm -> credentials, the tool's status command
"""
