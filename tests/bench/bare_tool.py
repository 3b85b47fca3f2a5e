"""In a guest, as the desktop's user: start a tool's login and print when its URL is known, in s.

    python3 -I - JSON < bare_tool.py

The keys of JSON are those of the provider's `login`: `command`, `environment`, `requests` (lines
for its standard input) and `mark`, which its URL contains. Nothing of the agent runs. With `null`
as JSON, it ends before it starts the tool.
"""

import json
import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

CHUNK_BYTES = 65536
POLL_SECONDS = 0.05

wanted = json.loads(sys.argv[1])
if wanted is None:
    sys.exit()
page = Path(os.environ["HOME"], "page")
environment = {**os.environ, **wanted["environment"], "POLYDEV_LOGIN_FIFO": str(page)}
reads, writes = os.pipe()
began = time.monotonic()
pid, terminal = pty.fork()
if pid == 0:
    if wanted["requests"]:
        os.dup2(reads, 0)
    os.execvpe(wanted["command"][0], wanted["command"], environment)
for line in wanted["requests"]:
    os.write(writes, line.encode() + b"\n")
output = b""
while not (re.search(wanted["mark"].encode(), output) or page.exists()):
    if select.select([terminal], [], [], POLL_SECONDS)[0]:
        output += os.read(terminal, CHUNK_BYTES)
print(time.monotonic() - began)
os.kill(pid, signal.SIGKILL)
