"""The settings of the agent, with the guest's values as defaults.

Tests use others: `AgentSettings(vnc_port=1234)`, or `--vnc-port=1234` on the command line.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing this name from typing would cost more than this module
if TYPE_CHECKING:
    from collections.abc import Iterable


class AgentSettings:
    listen_address: str = "0.0.0.0"  # noqa: S104 - the host asks from outside
    listen_port: int = 8080
    max_connections: int = 32
    request_timeout_seconds: float = 5.0
    reply_timeout_seconds: float = 5.0

    service_address: str = "127.0.0.1"
    vnc_port: int = 5901
    novnc_port: int = 6080
    x_socket: str = "/tmp/.X11-unix/X1"  # noqa: S108 - where X servers put it
    systemctl: str = "systemctl"
    proc: str = "/proc"
    identity: str = "/run/polydev/identity"  # by the host, in words of the kernel's command line
    console: str = "/dev/console"
    providers: str = "/usr/share/polydev/providers"  # a JSON file for each, by the image's build
    loopback_prefix: str = "127."  # the host never asks from such an address
    credentials_socket: str = "/run/polydev-credentials"  # of a program with the user's rights
    logins: str = "/run/polydev-login"  # a folder for each provider, written by its login
    logins_socket: str = "/run/polydev-login-server"  # of the program that starts logins
    # Where that program makes a control group for each login.
    login_groups: str = "/sys/fs/cgroup/system.slice/polydev-login.service"
    login_programs: str = "/usr/lib/polydev-agent/bin"  # what tools find before all others
    python_packages: str = "/usr/lib/python3/dist-packages"  # left out of sys.path by -S

    check_timeout_seconds: float = 4.0
    keep_seconds: float = 1.0  # age up to which a good answer is given again
    # The same for noVNC, which starts processes to answer. Sessions' viewers do not use it.
    novnc_keep_seconds: float = 60.0
    watch_pause_seconds: float = 1.0
    login_start_timeout_seconds: float = 60.0
    # How long the answer to the start of a login waits for its URL, which saves asking again.
    login_url_wait_seconds: float = 5.0
    login_status_timeout_seconds: float = 180.0  # claude's takes 10 s of an emulated CPU
    credentials_timeout_seconds: float = 20.0
    # Time for a tool to open a page. On emulated processors, copilot takes three minutes at its
    # first start, since it unpacks itself.
    login_page_seconds: float = 300.0
    login_quiet_seconds: float = 10.0  # after a URL was printed, until it counts as the login's

    def __init__(self, **values: str | int | float) -> None:
        for name, value in values.items():
            if name.startswith("_") or not hasattr(AgentSettings, name):
                raise ValueError(f"there is no setting named {name}")
            setattr(self, name, value)


def settings_from_arguments(arguments: Iterable[str]) -> AgentSettings:
    """Parse `--name=value` words. Each value gets the type of the setting's default."""
    values: dict[str, str | int | float] = {}
    for argument in arguments:
        option, equals, text = argument.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        default = getattr(AgentSettings, name, None)
        if not (option.startswith("--") and equals and isinstance(default, str | int | float)):
            raise ValueError(f"{argument} is not of the form --setting=value")
        values[name] = type(default)(text)
    return AgentSettings(**values)
