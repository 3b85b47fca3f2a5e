"""Sources of the controller's settings, and the messages about wrong ones."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from polydev.controller.check_config import problems
from polydev.controller.release_id import release_id
from polydev.controller.settings import ControllerSettings, load_settings
from polydev.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "config.yaml"
    made.write_text("port: 4100\nlog_level: warning\n")
    return made


def test_environment_overrides_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDEV_CONTROLLER_PORT", "4200")
    settings = load_settings(file)
    assert settings.port == 4200
    assert settings.log_level == "warning"
    assert settings.drain_seconds == 30


def test_empty_file_gives_the_defaults(file: Path) -> None:
    file.write_text("# nothing set\n")
    assert load_settings(file) == ControllerSettings()


def test_secret_comes_from_systemds_credentials(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jwt-secret").write_text("a-secret-of-this-host-and-no-other\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = load_settings(file)
    assert settings.jwt_secret is not None
    assert settings.jwt_secret.get_secret_value() == "a-secret-of-this-host-and-no-other"
    assert "a-secret-of-this-host-and-no-other" not in repr(settings)


def test_database_password_is_not_shown() -> None:
    settings = ControllerSettings(database_url="postgresql+psycopg://me:hidden@db/controller")
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port: many\n", "port: "),
        ("prot: 4000\n", "prot: "),
        ("PORT: 4000\n", "PORT: there is no such key; did you mean port?"),
        ("database_url: mysql://secret@db\n", "database_url: "),
        ("- port\n", "must hold keys and values"),
        ("port: [\n", "line 2: is not YAML"),
        ("port: 1\nport: 2\n", "port: this key appears twice, in line 1 and in line 2"),
        ("1: x\n", "line 1: the key 1 is not text"),
        ("session: {1: x}\n", "session: line 1: the key 1 is not text"),
        (
            "session: {per_usr: 1}\n",
            "session.per_usr: there is no such key; did you mean per_",
        ),
        ("per_user: 1\n", "per_user: there is no such key; did you mean session.per_user?"),
        (
            "identity: {jwks_url: 'https://x:abc/y'}\n",
            "identity.jwks_url: is not a valid URL: its host or port",
        ),
        (
            "identity: {jwks_url: 'https:///y'}\n",
            "identity.jwks_url: is not a valid URL: its host or port",
        ),
        ("slots: [2, x]\n", "slots.1: must be a whole number"),
        (
            "database_url: postgresql://u:secret@db:abc/x\n",
            "database_url: has an invalid host or port",
        ),
    ],
)
def test_error_names_file_and_key_but_no_value(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    assert caught.value.message.startswith(f"{file}: {said}")
    assert "secret@db" not in caught.value.message


USER = "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"
WRONG_VARIABLES = [
    ("SLOTS", "2,3", "the variable POLYDEV_CONTROLLER_SLOTS is not JSON"),
    ("SLOTS", "", "the variable POLYDEV_CONTROLLER_SLOTS is not JSON"),
    ("IDENTITY", "{audience: x}", "the variable POLYDEV_CONTROLLER_IDENTITY is not JSON"),
    ("TRUSTED_PROXIES", "10.0.0.1", "the variable POLYDEV_CONTROLLER_TRUSTED_PROXIES is not JSON"),
    ("SLOTS", "[1]", "slots.0: must be 2 or more"),
    ("SLOTS", "[" * 5000, "the variable POLYDEV_CONTROLLER_SLOTS is not JSON"),
    ("SLOTS__0", "2", "slots: must be a list"),
    ("PORT__X", "4001", "the variable POLYDEV_CONTROLLER_PORT__X: port has no keys below it"),
    ("SESSION", '{"per_user": 1, "per_user": 2}', "SESSION: an object has the same key twice"),
    ("PORT", "many", "port: must be a whole number"),
    ("SESSION__PER_USR", "1", "session.per_usr: there is no such key; did you mean per_user"),
    ("SESSION__PER_USER__X", "1", "session.per_user: must be a whole number"),
    ("SESSION", "[]", "session: must be a mapping of keys"),
    ("LOG_LEVL", "debug", "the variable POLYDEV_CONTROLLER_LOG_LEVL: .*did you mean log_level"),
    ("DATABASE_URL", "postgresql://u:hidden@db:abc/x", "database_url: has an invalid host or port"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG_VARIABLES)
def test_wrong_environment_variable_is_named_but_not_quoted(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"POLYDEV_CONTROLLER_{name}", value)
    with pytest.raises(ConfigError, match=said) as caught:
        load_settings(file)
    assert caught.value.hint
    assert "hidden" not in caught.value.message + caught.value.hint


def test_the_hint_names_the_variable_as_it_is_written(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYDEV_CONTROLLER_SESSION__PER_USER", "0")
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    assert "POLYDEV_CONTROLLER_SESSION__PER_USER" in str(caught.value.hint)


def test_environment_variables_can_hold_lists_and_groups(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYDEV_CONTROLLER_SLOTS", "[2, 3]")
    monkeypatch.setenv("POLYDEV_CONTROLLER_IDENTITY", '{"audience": "x"}')
    settings = load_settings(file)
    assert (settings.slots, settings.identity.audience) == ((2, 3), "x")


def test_file_that_is_not_utf_8_is_refused(file: Path) -> None:
    file.write_bytes(b"port: 1\n# gr\xf6\xdfe\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: line 2: is not UTF-8 text"):
        load_settings(file)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read: No such file"):
        load_settings(tmp_path / "config.yaml")


def test_release_id_is_read_from_the_release_file(tmp_path: Path) -> None:
    file = tmp_path / "release.json"
    assert release_id(file) is None
    file.write_text(json.dumps({"id": "20261121_101500-07af4b7"}))
    assert release_id(file) == "20261121_101500-07af4b7"
    file.write_text("[]")
    assert release_id(file) is None


JWT, KEY, OTHER_KEY = "x" * 32, base64.b64encode(b"k" * 32).decode(), "A" * 43 + "="
WRONG_SECRETS = [
    ("jwt-secret", "", "is empty"),
    ("jwt-secret", "a", "has 1 bytes.*at least 32.*openssl rand"),
    ("jwt-secret", "ä" * 15 + "a", "has 31 bytes"),
    ("jwt-secret", " " * 40, "is empty"),
    ("jwt-secret", "x" * 31 + "\n", "has 31 bytes"),
    ("jwt-secret", "\ufeff" + JWT, "byte order mark"),
    ("jwt-secret", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "signed"),
    ("jwt-secret", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQ", "public or private key"),
    ("credentials-key", "\n", "is empty"),
    ("credentials-key", "A" * 42, "keys of 32 bytes in base64.*credentials.key"),
    ("credentials-key", f"{KEY}\nnone\n", "keys of 32 bytes"),
    ("credentials-key", f"{KEY} {OTHER_KEY}", "keys of 32 bytes"),
    ("credentials-key", f"{KEY}\n{KEY}\n", "the same key twice"),
    ("alert-urls", "\t", "is empty"),
    ("alert-urls", "htp//nonsense", "address 1 is not an Apprise URL"),
    ("alert-urls", "mailto://a:b@c.example http:/x", "address 2 is not an Apprise URL"),
    ("database-url", "", "is empty"),
    ("database-url", "db.example", "must begin with postgresql"),
    ("database-url", "mysql://u:hidden@db/x", "must begin with postgresql"),
    ("database-url", "postgresql+psycopg://u:hidden@db:abc/x", "host or port"),
    ("database-url", "postgresql+psycopg://u:hidden@db:99999/x", "host or port"),
    ("database-url", "postgresql+psycopg://u:hidden@db:0/x", "host or port"),
    ("database-url", "postgresql+psycopg://u:hidden%00@db/x", "contains %00"),
    ("database-url", "postgresql+psycopg://u:hidden@db/x?sslmod=require", 'option "sslmod"'),
    ("database-url", "postgresql+psycopg://u:hidden@db/x?sslmode=hidden", "must be one of prefer"),
    ("database-url", "postgresql+psycopg://u:hidden@db/x?connect_timeout=5s", "a whole number"),
    ("database-url", "sqlite+aiosqlite://", "names no file"),
    ("database-url", "sqlite+aiosqlite:///:memory:", "names no file"),
]
SOUND_SECRETS = [
    ("jwt-secret", f"{JWT}\n"),
    ("jwt-secret", "ä" * 16),
    ("credentials-key", f"{KEY}\r\n{OTHER_KEY}\n"),
    ("alert-urls", "mailto://a:b@c.example\njson://hook.example/x"),
    ("database-url", "postgresql+psycopg://u:hidden@[2001:db8::1]:5432/x?sslmode=require\n"),
    ("database-url", "postgresql+psycopg:///x?host=/run/postgresql"),
    ("database-url", "postgresql+psycopg://u:p@a/x?host=a:5432&host=b&connect_timeout=5"),
    ("database-url", "sqlite+aiosqlite:////var/lib/x"),
]


def document(**parts: Any) -> dict[str, Any]:
    return {"config": {"port": 4000}, "given": {}, "secrets": {}} | parts


class TestSecrets:
    """Messages of a plan and of the service's start about the same wrong secret."""

    @pytest.mark.parametrize(("name", "text", "why"), WRONG_SECRETS)
    def test_wrong_secret_is_refused_by_plan_and_start_and_not_quoted(
        self,
        name: str,
        text: str,
        why: str,
        file: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (told,) = problems(document(secrets={name: text}))
        assert told["key"] == f"secrets.{name}"
        assert re.search(why, told["message"])
        (tmp_path / name).write_text(text)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        with pytest.raises(ConfigError, match=why) as caught:
            load_settings(file)
        for secret in ("hidden", "nonsense", JWT, KEY):
            assert secret not in told["message"] + caught.value.message

    @pytest.mark.parametrize(("name", "text"), SOUND_SECRETS)
    def test_valid_secret_is_accepted_by_plan_and_start(
        self, name: str, text: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert problems(document(secrets={name: text})) == []
        (tmp_path / name).write_text(text)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        load_settings(file)

    def test_secret_that_is_not_utf_8_is_refused(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "jwt-secret").write_bytes(b"\xff" * 40)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        with pytest.raises(ConfigError, match=r"jwt-secret: cannot be read: it is not UTF-8 text"):
            load_settings(file)

    def test_credentials_directory_provides_secrets_only(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "port").write_text("4999")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        assert load_settings(file).port == 4100

    @pytest.mark.parametrize(
        "url",
        [
            *("htp://nonsense", "mailto://", "discord://x"),
            *("json://nonsense:0/", "json://nonsense:65536/", "ntfy://nonsense:-1/topic"),
        ],
    )
    def test_alert_url_that_apprise_cannot_use_is_refused(self, url: str) -> None:
        (told,) = problems(document(secrets={"alert-urls": f"json://hook.example {url}"}))
        assert told["key"] == "secrets.alert-urls"
        assert told["message"].startswith(("address 2 is ", "address 2 has a port "))
        assert "nonsense" not in told["message"]

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("jwt_secret", "did you mean jwt-secret?"),
            ("foo", "known secrets are alert-urls, credentials-key, database-url, jwt-secret"),
            ("port", "unknown secret"),
        ],
    )
    def test_unknown_secret_is_refused(self, name: str, words: str) -> None:
        (told,) = problems(document(secrets={name: JWT}))
        assert told["key"] == f"secrets.{name}"
        assert words in told["message"]


class TestKeys:
    @pytest.mark.parametrize(
        ("given", "key", "words"),
        [
            ({"log_levl": "debug"}, "log_levl", "there is no such key; did you mean log_level?"),
            ({"drain_seconds": "soon"}, "drain_seconds", "must be a whole number"),
            ({"drain_seconds": 120}, "drain_seconds", "less than 60"),
            ({"session": {"per_user": 0}}, "session.per_user", "must be 1 or more"),
            ({"session": {"peruser": 1}}, "session.peruser", "there is no such key"),
            (
                {"database_url": "sqlite://"},
                "database_url",
                "give it as a file named `database-url`",
            ),
            ({"jwt_secret": JWT}, "jwt_secret", "is a secret"),
            ({"rate": None}, "rate", "must be a mapping of keys"),
            ({"Log_Level": "debug"}, "Log_Level", "did you mean log_level?"),
            ({"session": {"max_seconds": float("inf")}}, "session.max_seconds", "finite"),
            ({"session": {"max_seconds": 1e300}}, "session.max_seconds", "or less"),
            ({"session": {"idle_seconds": 1e12}}, "session.idle_seconds", "or less"),
            ({"samples": {"keep_seconds": 1e12}}, "samples.keep_seconds", "or less"),
            ({"samples": {"every_seconds": 1e-9}}, "samples.every_seconds", "0.001 or more"),
            ({"alert": {"for_seconds": float("inf")}}, "alert.for_seconds", "finite"),
            ({"alert": {"failed_boots_seconds": 1e12}}, "alert.failed_boots_seconds", "or less"),
            ({"boot_deadline_seconds": {"kernel": 1e300}}, "boot_deadline_seconds.kernel", "or"),
            ({"keep_ended_days": 10**6}, "keep_ended_days", "must be 36525 or less"),
            ({"keep_failed_seconds": 10**30}, "keep_failed_seconds", "or less"),
            ({"keep_alive_seconds": 10**12}, "keep_alive_seconds", "or less"),
            ({"rate": {"requests_per_second": float("inf")}}, "rate.requests_per_second", "finite"),
            ({"alert": {"hysteresis_percent": float("inf")}}, "alert.hysteresis_percent", "finite"),
            ({"alert": {"warning_percent": 95}}, "alert", "less than critical_percent"),
            ({"alert": {"hysteresis_percent": 70}}, "alert", "alerts are never cleared"),
            (
                {
                    "alert": {
                        "warning_percent": 85,
                        "hysteresis_percent": 80,
                    }
                },
                "alert",
                "less than 80",
            ),
            ({"identity": {"leeway_seconds": 1e9}}, "identity.leeway_seconds", "or less"),
            ({"identity": {"audience": ""}}, "identity.audience", "must not be empty"),
            ({"identity": {"issuer": ""}}, "identity.issuer", "must not be empty"),
            ({"identity": {"jwks_url": "https://x y/"}}, "identity.jwks_url", "cannot be read"),
            ({"identity": {"jwks_url": "https://x/\n"}}, "identity.jwks_url", "cannot be read"),
            ({"trusted_proxies": ["10.0.0.1", "0.0.0.0/0"]}, "trusted_proxies", "trusts everybody"),
            ({"trusted_proxies": ["::/0"]}, "trusted_proxies", "trusts everybody"),
            ({"trusted_proxies": ["proxy"]}, "trusted_proxies.0", "must be a network without bits"),
            ({"trusted_proxies": [10]}, "trusted_proxies.0", "must be text, in quotes"),
            ({"drain_seconds": True}, "drain_seconds", "must not be true or false"),
            ({"session": {"per_user": True}}, "session.per_user", "must not be true or false"),
            ({"release_file": ""}, "release_file", "must not be empty"),
            ({"release_file": "a\0b"}, "release_file", "is not a path"),
            ({"rate": {"requests_per_second": 5e-324}}, "rate.requests_per_second", "0.001 or"),
            ({"identity": {"jwks_url": "https://a..b/"}}, "identity.jwks_url", "cannot be read"),
            (
                {"quotas": {"by_user": {USER: {}, USER.upper(): {"vm_hours_per_day": 1}}}},
                "quotas.by_user",
                "names a user twice",
            ),
            (
                {"webhooks": {"endpoints": [{"name": "a", "url": "https://x", "events": []}]}},
                "webhooks.endpoints.0.events",
                "must not be empty",
            ),
        ],
    )
    def test_wrong_key_is_refused_with_its_name(
        self, given: dict[str, Any], key: str, words: str
    ) -> None:
        (told,) = problems(document(given=given))
        assert told["key"] == f"controller.{key}"
        assert words in told["message"]

    def test_all_wrong_keys_are_reported_at_once(self) -> None:
        given = {"log_level": "loud", "x": 1, "alert_urls": "y"}
        found = problems(document(given=given, secrets={"jwt-secret": "a"}))
        assert sorted(each["key"] for each in found) == [
            "controller.alert_urls",
            "controller.log_level",
            "controller.x",
            "secrets.jwt-secret",
        ]

    def test_check_ignores_environment_and_credentials_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POLYDEV_CONTROLLER_PORT", "many")
        (tmp_path / "jwt-secret").write_text("a")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        assert problems(document()) == []
