"""Reading `systemctl show`, and the sd_notify and socket activation rules."""

from __future__ import annotations

from polydev.agent.systemd import inherited_socket, notify, units_of_show, unknown_units

WANTED = ("a.service", "b.service")
SHOW = """\
Result=success
NRestarts=0
ExecMainStatus=0
Id=a.service
ActiveState=active
SubState=running

Result=exit-code
NRestarts=3
ExecMainStatus=1
Id=b.service
ActiveState=activating
SubState=auto-restart

Id=other.mount
ActiveState=failed
SubState=failed
Result=exit-code
"""


def test_show_output_gives_wanted_and_failed_units() -> None:
    units = units_of_show(SHOW, WANTED)
    assert units.problem == ""
    assert units.failed == ["other.mount"]
    assert units.services == {
        "a.service": {"active": "active", "sub": "running", "result": "success", "restarts": 0},
        "b.service": {
            "active": "activating",
            "sub": "auto-restart",
            "result": "exit-code",
            "restarts": 3,
        },
    }
    assert not units.all_active()
    assert not units.any_given_up(is_booting=True)


def test_unit_description_contains_result_and_restarts() -> None:
    units = units_of_show(SHOW, WANTED)
    assert units.words("a.service") == "a.service is active/running"
    assert units.words("b.service") == (
        "b.service is activating/auto-restart, exit-code 1, 3 restarts"
    )


def test_failed_or_start_limited_units_are_given_up() -> None:
    failed = SHOW.replace("activating", "failed")
    assert units_of_show(failed, WANTED).any_given_up(is_booting=True)
    assert units_of_show(failed, WANTED).failed == ["b.service", "other.mount"]
    limited = SHOW.replace("Result=success", "Result=start-limit-hit")
    assert units_of_show(limited, WANTED).any_given_up(is_booting=True)


def test_unit_in_a_crash_loop_is_given_up_only_during_boot() -> None:
    often = units_of_show(SHOW.replace("NRestarts=3", "NRestarts=4"), WANTED)
    assert often.any_given_up(is_booting=True)
    # After the boot the user may close the browser repeatedly.
    assert not often.any_given_up(is_booting=False)
    came_up = SHOW.replace("NRestarts=3", "NRestarts=9").replace("activating", "active")
    assert not units_of_show(came_up, WANTED).any_given_up(is_booting=True)


def test_failed_units_outside_the_wanted_ones_do_not_count() -> None:
    assert not units_of_show(SHOW, ("a.service",)).any_given_up(is_booting=True)
    assert units_of_show(SHOW, ("a.service",)).all_active()


def test_units_missing_in_the_output_are_unknown() -> None:
    units = units_of_show("Failed to connect to bus: no such file\n", WANTED)
    assert units.problem == "systemctl says nothing of a.service, b.service"
    assert units.words("a.service") == units.problem
    assert units.services["a.service"]["active"] == "unknown"
    assert not units.all_active()


def test_malformed_show_values_are_ignored() -> None:
    odd = "Id=a.service\nActiveState=active\nNRestarts=[not set]\nno equals sign\nX==\n\n\n\n"
    units = units_of_show(odd, ("a.service",))
    assert units.services["a.service"] == {
        "active": "active",
        "sub": "unknown",
        "result": "unknown",
        "restarts": 0,
    }


def test_unknown_units_have_separate_states() -> None:
    services = unknown_units(WANTED, "why").services
    assert services["a.service"] is not services["b.service"]


def test_sockets_of_another_process_are_not_inherited() -> None:
    assert inherited_socket({}, 10) is None
    assert inherited_socket({"LISTEN_FDS": "1", "LISTEN_PID": "11"}, 10) is None
    assert inherited_socket({"LISTEN_FDS": "0", "LISTEN_PID": "10"}, 10) is None
    assert inherited_socket({"LISTEN_FDS": "many", "LISTEN_PID": "10"}, 10) is None


def test_notify_without_a_socket_does_nothing() -> None:
    notify({}, "READY=1")
