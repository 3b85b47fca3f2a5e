"""The verbs of ./inv as its parser sees them. Asked once: Invoke takes the help out as it reads."""

from __future__ import annotations

from invoke.parser.context import ParserContext

from tasks import namespace

VERBS: dict[str, ParserContext] = {str(each.name): each for each in namespace.to_contexts()}
