"""The agent in each VM: it reports over HTTP how far the VM is and what does not work.

Types come from `reply_types`, which is for readers, type checkers and the host; the guest never
loads it. Programs that start in each clone (`identity`) or while a user waits (`login_program`)
import little, since an emulated CPU is some twenty times slower than a real one. The flow:

    settings -> server (the standard library's) -> routes
    routes -> health -> desktop_checks, systemd, vm_facts
           -> metrics (imported with the first request)
           -> login_routes (imported with the first request)
    login_routes -> login_control -> login_state (of a file that login_program writes)
                                  -> (a socket) -> login_server
                 -> credentials_client -> (a socket) -> credentials_program -> credentials_file

A service waits for logins, whose program is `login_server`; each login is a child process of it:

    login_server -> login_program
    login_program -> tool_process, login_terminal, browser
                  -> login_flow -> login_output, terminal_text
                                -> login_state -> (a file) -> login_control
                  -> login_confirm -> credentials_file, the tool's status command
"""
