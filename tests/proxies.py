"""nginx and Caddy in front of a controller, with the lines that docs/controller.md has for them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from polydev.processes import spawn
from tests.certificates import Tls
from tests.driving import until
from tests.ports import reserved_port

DOCUMENT = Path(__file__).parents[1] / "docs" / "controller.md"
HOST = "127.0.0.1"
NGINX = """
daemon off;
user root;
worker_processes 1;
error_log stderr;
pid {folder}/nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {compression}
    {documented}
}}
"""
CADDY = """
{{
    admin off
    auto_https disable_redirects
    storage file_system {folder}
}}
{documented}
"""


@dataclass(frozen=True)
class Proxy:
    program: str
    port: int
    url: str


def documented(language: str) -> str:
    """Return the document's configuration of a program."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
    return str(found)


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """Return the text with these replacements, each of which must match."""
    for old, new in changes.items():
        assert old in text, f"{DOCUMENT} has no {old!r} any more"
        text = text.replace(old, new)
    return text


def nginx_lines(
    port: int, upstream: int, tls: Tls, folder: Path, *, compresses: bool, read_timeout: str
) -> str:
    lines = replaced(
        documented("nginx"),
        {
            "listen 443 ssl": f"listen {port} ssl",
            "vms.example.com;\n    ssl_certificate /etc": "localhost;\n    ssl_certificate /etc",
            "/etc/ssl/vms.example.com.pem": str(tls.certificate),
            "/etc/ssl/vms.example.com.key": str(tls.key),
            "127.0.0.1:4000": f"{HOST}:{upstream}",
            "proxy_read_timeout 60s": f"proxy_read_timeout {read_timeout}",
        },
    )
    compression = "gzip on; gzip_types *; gzip_proxied any; gzip_min_length 0;"
    return NGINX.format(
        folder=folder, compression=compression if compresses else "", documented=lines
    )


def caddy_lines(
    port: int, upstream: int, tls: Tls, folder: Path, *, compresses: bool, read_timeout: str
) -> str:
    """Return Caddy's configuration; by default it has no read timeout."""
    sites = f"https://{HOST}:{port}, https://localhost:{port}"
    compression = "    encode gzip\n" if compresses else ""
    lines = replaced(
        documented("caddyfile"),
        {
            "vms.example.com {\n": f"{sites} {{\n{compression}",
            "/etc/ssl/vms.example.com.pem": str(tls.certificate),
            "/etc/ssl/vms.example.com.key": str(tls.key),
            "127.0.0.1:4000": f"{HOST}:{upstream}",
        },
    )
    return CADDY.format(folder=folder, documented=lines)


Lines = Callable[..., str]
PROGRAMS: Mapping[str, tuple[Lines, tuple[str, ...]]] = {
    "nginx": (nginx_lines, ("nginx", "-p", "{folder}", "-c")),
    "caddy": (caddy_lines, ("caddy", "run", "--adapter", "caddyfile", "--config")),
}


@asynccontextmanager
async def proxy(
    program: str,
    upstream: int,
    tls: Tls,
    folder: Path,
    *,
    compresses: bool = False,
    read_timeout: str = "60s",
) -> AsyncIterator[Proxy]:
    """Run a proxy that serves HTTPS on its own port for the block."""
    make_lines, words = PROGRAMS[program]
    argv = [word.format(folder=folder) for word in words]
    environment = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with reserved_port() as port, TemporaryFile() as said:
        lines = make_lines(
            port, upstream, tls, folder, compresses=compresses, read_timeout=read_timeout
        )
        file = _written(folder, lines)
        process = spawn([*argv, file], env=environment, stdout=said, stderr=said)
        try:
            await until(lambda: _listens(port, process.poll(), said), f"{program} to listen")
            yield Proxy(program, port, f"https://{HOST}:{port}")
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)


def _written(folder: Path, lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "proxy.conf"
    file.write_text(lines)
    return file


async def _listens(port: int, status: int | None, said: IO[bytes]) -> bool:
    if status is not None:
        said.seek(0)
        raise AssertionError(f"ended with {status}: {said.read().decode()}")
    with suppress(OSError):
        _, writer = await asyncio.open_connection(HOST, port)
        writer.close()
        return True
    return False
