"""The certificate and key of the controller: invalid ones fail a deployment and a start."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import SecretStr

from polydev.controller.check_config import problems
from polydev.controller.settings import ControllerSettings, load_settings
from polydev.controller.tls import expiry_of, server_context, trouble_now
from polydev.errors import ConfigError
from polydev.hosttool import health_gate
from polydev.hosttool.health_gate import controller_check
from tests.certificates import DAY, Tls, make_tls
from tests.loopback import as_json, served

NO_KEY = "-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


def found(**secrets: str) -> dict[str, str]:
    named = {name.replace("_", "-"): text for name, text in secrets.items()}
    document = {"config": {}, "given": {}, "secrets": named}
    return {each["key"]: each["message"] for each in problems(document)}


class TestPlan:
    def test_matching_certificate_and_key_are_accepted(self, tls: Tls) -> None:
        assert found(**{name.replace("-", "_"): text for name, text in tls.secrets.items()}) == {}

    def test_certificate_without_key_is_refused_and_vice_versa(self, tls: Tls) -> None:
        words = "tls-certificate and tls-key must both be given, or neither"
        for name, text in tls.secrets.items():
            assert found(**{name.replace("-", "_"): text}) == {"secrets.tls-certificate": words}

    def test_key_of_another_certificate_is_refused(self, tls: Tls, tmp_path: Path) -> None:
        other = make_tls(tmp_path)
        (wrong,) = found(
            tls_certificate=tls.certificate.read_text(), tls_key=other.key.read_text()
        ).items()
        assert wrong[0] == "secrets.tls-certificate"
        assert "does not match tls-key" in wrong[1]

    def test_malformed_pem_is_refused_and_not_quoted(self, tls: Tls) -> None:
        key = tls.key.read_text()
        wrong = found(tls_certificate="hidden text", tls_key=key)
        assert "no certificate in PEM form" in wrong["secrets.tls-certificate"]
        wrong = found(tls_certificate=tls.certificate.read_text(), tls_key=NO_KEY)
        assert "not a private key in PEM form" in wrong["secrets.tls-key"]
        assert "hidden" not in str(wrong)

    def test_both_secrets_are_named_if_both_are_wrong(self) -> None:
        wrong = found(tls_certificate="no", tls_key="no")
        assert set(wrong) == {"secrets.tls-certificate", "secrets.tls-key"}

    def test_a_key_with_a_passphrase_is_refused(self, tls: Tls) -> None:
        key = load_pem_private_key(tls.key.read_bytes(), None)
        closed = key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"words")
        )
        wrong = found(tls_certificate=tls.certificate.read_text(), tls_key=closed.decode())
        assert "passphrase" in wrong["secrets.tls-key"]

    @pytest.mark.parametrize(
        ("begins", "ends", "words"),
        [(-2 * DAY, -DAY, "expired on"), (DAY, 2 * DAY, "is valid from")],
    )
    def test_expired_or_future_certificate_is_refused(
        self, tmp_path: Path, begins: timedelta, ends: timedelta, words: str
    ) -> None:
        old = make_tls(tmp_path, begins=begins, ends=ends)
        wrong = found(tls_certificate=old.certificate.read_text(), tls_key=old.key.read_text())
        assert words in wrong["secrets.tls-certificate"]


class TestStart:
    def test_expired_certificate_does_not_prevent_the_start(self, tmp_path: Path) -> None:
        old = make_tls(tmp_path, begins=-2 * DAY, ends=-DAY)
        settings = ControllerSettings(
            tls_certificate=SecretStr(old.certificate.read_text()),
            tls_key=SecretStr(old.key.read_text()),
        )
        assert settings.tls_certificate is not None
        text = settings.tls_certificate.get_secret_value()
        assert trouble_now(text, expiry_of(text)) is not None
        assert trouble_now(text, expiry_of(text) - DAY / 2) is None
        server_context(text, old.key.read_text())

    def test_start_error_names_the_secret(
        self, tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "tls-key").write_text(tls.key.read_text())
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        file = tmp_path / "config.yaml"
        file.write_text("port: 4000\n")
        with pytest.raises(ConfigError, match="tls-certificate and tls-key") as told:
            load_settings(file)
        assert "the secret tls-certificate" in str(told.value.hint)


class TestGate:
    """The health gate asks a real server, whose certificate has another name."""

    @pytest.mark.parametrize("is_own", [True, False])
    def test_gate_checks_that_the_certificate_is_the_deployed_one(
        self, tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_own: bool
    ) -> None:
        current = tmp_path / "current"
        current.symlink_to("releases/20250131_120000-abcd")
        monkeypatch.setattr(health_gate, "CURRENT", current)
        declared = tls if is_own else make_tls(tmp_path / "other")
        context = server_context(tls.certificate.read_text(), tls.key.read_text())
        release = as_json({"release": "20250131_120000-abcd"})
        with served(lambda _: release, tls=context) as server:
            port = int(server.url.rpartition(":")[2])
            host: dict[str, object] = {
                "controllerPort": port,
                "controllerCertificate": str(declared.certificate),
            }
            check = controller_check(host)
        assert check.ok == is_own, check
        if not is_own:
            assert check.detail == f"its certificate is not that of {declared.certificate}"
