"""The output of a program on a terminal: its text without escape sequences, its URLs. Pure."""

from __future__ import annotations

import re

# OSC, then DCS, SOS, PM and APC, then CSI, then the rest (ECMA-48).
_SEQUENCE = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"
    r"|\x1b\[[0-?]*[ -/]*[@-~]?|\x1b[ -/]*[0-~]?"
)
_LINK = re.compile(r"\x1b\]8;[^;\x07\x1b]*;([^\x07\x1b]+)(?:\x07|\x1b\\)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_URL_LETTERS = r"[!#-;=?-\[\]_a-z~]"
_URL = re.compile(rf"https?://{_URL_LETTERS}+")
_URL_REST = re.compile(rf"{_URL_LETTERS}+")
_BORDER = " \t│┃║|"
# No terminal wraps later; the URL of a login on a separate line is longer.
MAX_WRAP_COLUMNS = 250


def plain_text(written: str) -> str:
    """Return the text without escape sequences; overwritten text is a line, too."""
    text = _SEQUENCE.sub("", written).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text)


def last_lines(written: str, count: int) -> str:
    """Return the last lines that are not empty, without escape sequences."""
    lines = [line.strip() for line in plain_text(written).splitlines()]
    return "\n".join([line for line in lines if line][-count:])


def urls_written(written: str) -> list[str]:
    """Return all http URLs: first the targets of links, which are complete, then others."""
    links = [link for link in _LINK.findall(written) if _URL.fullmatch(link)]
    return [*links, *_urls_in(plain_text(written).splitlines())]


def _urls_in(lines: list[str]) -> list[str]:
    shown = [line.strip(_BORDER) for line in lines]
    return [
        match.group() + (_continuation(shown[at:]) if match.end() == len(line) else "")
        for at, line in enumerate(shown)
        for match in _URL.finditer(line)
    ]


def _continuation(shown: list[str]) -> str:
    """Return the rest of a URL at the end of the first line, if the program wrapped it.

    These are lines with letters of URLs only, up to the first shorter one.
    """
    width = len(shown[0])
    if width > MAX_WRAP_COLUMNS:
        return ""
    rest = ""
    for line in shown[1:]:
        if len(line) > width or not _URL_REST.fullmatch(line):
            break
        rest += line
        if len(line) < width:
            break
    return rest
