"""The pages' headers, files and texts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest

from polydev import image_diff
from polydev.controller.settings import WebSettings
from polydev.controller.web.assets import FOREVER, OWN, Assets
from polydev.controller.web.image_pages import FORMATS
from polydev.controller.web.navigation import OPERATOR_LINKS, USER_LINKS
from polydev.controller.web.security_headers import content_security_policy
from polydev.controller.web.texts import text, texts
from tests.api import ApiHost, Served, api_host, empty_assets
from tests.pages import Browser

PACKAGE = OWN.parent
TEMPLATES = sorted((PACKAGE / "templates").rglob("*.html"))
SOURCES = [*TEMPLATES, *PACKAGE.glob("*.py"), *OWN.rglob("*.js")]


@pytest.fixture
def host(migrated: Path, tmp_path: Path) -> ApiHost:
    return api_host(migrated, tmp_path)


def test_pages_have_a_strict_content_security_policy(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        page = await Browser(asked).ask("GET", "/login")
        policy = dict(
            rule.strip().partition(" ")[::2]
            for rule in page.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["connect-src"] == "'self' ws://controller.test"
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["referrer-policy"] == "same-origin"  # otherwise forms send no Origin
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert "cross-origin-opener-policy" not in page.headers  # browsers complain without TLS

    host.run(scenario)


def test_tls_pages_have_cross_origin_opener_policy(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        page = await Browser(asked).ask("GET", "/login")
        assert page.headers["cross-origin-opener-policy"] == "same-origin"

    host.run(scenario, web=WebSettings(public_url="https://vms.example.com"))


@pytest.mark.parametrize("host", ["a b", "x; script-src *", 'x"y', "", "x,y"])
def test_malformed_host_header_is_not_in_the_policy(host: str) -> None:
    assert "connect-src 'self';" in content_security_policy(host, is_secure=False)


def test_tls_pages_allow_wss_only() -> None:
    assert "wss://vms.example" in content_security_policy("vms.example", is_secure=True)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda file: file.name)
def test_templates_have_neither_inline_scripts_nor_styles(template: Path) -> None:
    source = template.read_text()
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|javascript:", source)
    for script in re.findall(r"<script\b[^>]*>", source):
        assert "src=" in script or 'type="application/json"' in script
    assert "|safe" not in source.replace(" ", "")


def used_texts(files: Iterable[Path]) -> set[str]:
    """Return the names in calls of `t` and `text`; a name that ends with a dot is a prefix."""
    sources = "\n".join(file.read_text() for file in files)
    named = set(re.findall(r"""\b(?:t|text)\(\s*f?["']([a-z0-9_.-]+)""", sources))
    begun = tuple(name for name in named if name.endswith("."))
    return {name for name in named if name not in begun} | {
        name for name in texts() if name.startswith(begun)
    }


def test_texts_and_their_uses_match() -> None:
    sources = "\n".join(file.read_text() for file in SOURCES)
    names = set(texts())
    used = used_texts([*TEMPLATES, *PACKAGE.glob("*.py")])
    used |= {link.title for link in (*USER_LINKS, *OPERATOR_LINKS)}
    groups = set(re.findall(r"""texts_under\(["']([a-z0-9_.]+)["']""", sources))
    of_scripts = {name for name in names if any(name.startswith(f"{each}.") for each in groups)}
    assert used <= names, used - names
    for name in used_texts(OWN.rglob("*.js")):
        assert name in names or any(f"{group}.{name}" in names for group in groups), name
    for name in names - used:
        last = name.rpartition(".")[2]
        assert name in of_scripts, name
        assert re.search(rf"\b{last}\b", sources), f"no script says {name}"


def test_texts_are_filled_in() -> None:
    assert text("problem.request", id="x").startswith("Request ID: x. ")


@pytest.mark.parametrize(
    ("change_bytes", "words"),
    [(-1_572_864, "\N{MINUS SIGN}1.5 MiB"), (0, "+0 B"), (3 << 30, "+3.0 GiB")],
)
def test_image_size_change_has_sign_and_unit(host: ApiHost, change_bytes: int, words: str) -> None:
    diff = image_diff.ImageDiff(
        old="a" * 64,
        new="b" * 64,
        packages_added=[],
        packages_removed=[],
        packages_changed=[],
        content_change_bytes=change_bytes,
        rootfs_allocated_change_bytes=0,
        layers_changed=[],
        settings_changed=[],
        files=None,
    )

    async def scenario(asked: Served) -> None:
        pages = asked.app.state.pages
        shown = pages.part("image_diff.html", diff=diff, problem="", **FORMATS)
        assert f"<strong>{words}</strong>" in shown

    host.run(scenario)


def test_asset_urls_contain_the_content_digest(tmp_path: Path) -> None:
    assets = Assets(empty_assets(tmp_path / "one"))
    other = empty_assets(tmp_path / "other")
    (other / "htmx.js").write_text("changed")
    assert Assets(other).url("requests_and_notices.js") != assets.url("requests_and_notices.js")
    with pytest.raises(KeyError, match=r"no file x\.js"):
        assets.url("x.js")


def test_assets_are_gzipped_if_accepted(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        url = asked.app.state.pages.assets.url("requests_and_notices.js")
        content = (OWN / "requests_and_notices.js").read_bytes()
        zipped = await _raw(asked, url, "gzip, br")
        plain = await _raw(asked, url, "identity")
        assert zipped.headers["content-encoding"] == "gzip"
        assert plain.content == content
        assert zipped.content == content  # as the client unpacks it
        for answer in (zipped, plain):
            assert answer.headers["cache-control"] == FOREVER
            assert answer.headers["vary"] == "Accept-Encoding"
            assert answer.headers["content-type"] == "text/javascript; charset=utf-8"

    host.run(scenario)


async def _raw(asked: Served, url: str, encoding: str) -> httpx.Response:
    return await asked.client.get(url, headers={"Accept-Encoding": encoding})


def test_unknown_asset_paths_are_refused(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        digest = asked.app.state.pages.assets.digest
        for path in (
            f"/static/{digest}/none.js",
            "/static/0000000000000000/requests_and_notices.js",
            f"/static/{digest}/%2e%2e/page_rendering.py",
            f"/static/{digest}//etc/passwd",
            f"/static/{digest}/",
        ):
            assert (await asked.client.get(path)).status_code in (401, 404), path

    host.run(scenario)
