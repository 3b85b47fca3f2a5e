"""`polydev-template-holder`: keeps templates in memory, sealed, and sends them to launchers.

    files of a template --sealed, checksums compared--> descriptors --SCM_RIGHTS--> a VM's launcher

A launcher asks with the rights of its slot's user (`polydev.vm.template_client`). The content of a
template is not secret, but no VM may change what others get.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.errors import Error, VmError
from polydev.file_checksum import file_sha256
from polydev.image_layout import STORE, TEMPLATES
from polydev.vm.cancel_on_timeout import limited
from polydev.vm.template import sealed
from polydev.vm.template_client import FILES, MAX_ANSWER_BYTES, OK, REFUSED
from polydev.vm.template_store import Template, TemplateStore
from polydev.vm.untrusted_files import descriptor_path

log = logging.getLogger(__name__)

FOLDER = STORE / TEMPLATES
# The first descriptor that systemd passes is the socket that it listens on; sd_listen_fds(3).
FIRST_DESCRIPTOR = 3
KEY = re.compile(rb"[0-9a-f]{64}")
# On a busy host a launcher may stand still for so long before it asks.
QUESTION_SECONDS = 20.0
CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True)
class Held:
    """A template in memory; descriptors in the order of FILES."""

    template: Template
    descriptors: tuple[int, ...]


class TemplateHolder:
    """Answers launchers, one at a time for each user, so that no user keeps others waiting."""

    def __init__(self, templates: TemplateStore) -> None:
        self._templates = templates
        self._held: dict[str, Held] = {}
        self._loading = asyncio.Lock()
        self._asking: set[int] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Answer without end. The listener is not blocking."""
        loop, tasks = asyncio.get_running_loop(), set()
        while True:
            client, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(self._serve(client))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        with client:
            client.setblocking(False)
            user = CREDENTIALS.unpack(
                client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
            )[1]
            if user in self._asking:
                return
            self._asking.add(user)
            try:
                await self._answer(client)
            except (OSError, asyncio.TimeoutError, TimeoutError) as error:
                log.info("user %d: %s", user, str(error) or "no request in time")
            finally:
                self._asking.discard(user)

    async def _answer(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        question = await limited(QUESTION_SECONDS, loop.sock_recv(client, 128))
        try:
            descriptors = await self._descriptors(question)
        except (Error, OSError) as error:
            log.warning("refused a launcher: %s", error)
            client.send(REFUSED + str(error).encode()[: MAX_ANSWER_BYTES - len(REFUSED)])
            return
        socket.send_fds(client, [OK], descriptors)

    async def _descriptors(self, question: bytes) -> tuple[int, ...]:
        if not KEY.fullmatch(question):
            raise VmError("the request is not the key of a template")
        key = question.decode()
        async with self._loading:
            self._let_go()
            if key not in self._held:
                self._held[key] = await asyncio.to_thread(hold, self._templates, key)
            return self._held[key].descriptors

    def _let_go(self) -> None:
        """Close templates that were removed or made again. VMs keep the descriptors they have."""
        for key, held in list(self._held.items()):
            if self._templates.find(key) != held.template:
                for descriptor in self._held.pop(key).descriptors:
                    os.close(descriptor)


def hold(templates: TemplateStore, key: str) -> Held:
    """Copy a template's files into sealed memory.

    Raises OSError, and VmError if there is no such template or a checksum differs.
    """
    template = templates.find(key)
    if template is None:
        raise VmError(f"there is no template {key[:12]}")
    made: list[int] = []
    try:
        for name in FILES:
            made.append(sealed(templates.place(key) / name))
            if file_sha256(descriptor_path(made[-1])) != template.files[name]:
                raise VmError(f"template {key[:12]} is damaged: {name} has another checksum")
    except BaseException:
        for descriptor in made:
            os.close(descriptor)
        raise
    return Held(template, tuple(made))


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the socket that systemd passes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    folder = Path(argv[0]) if argv else FOLDER
    with socket.socket(fileno=FIRST_DESCRIPTOR) as listener:
        listener.setblocking(False)
        asyncio.run(TemplateHolder(TemplateStore(folder)).serve(listener))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
