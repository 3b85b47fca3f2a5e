"""The verbs of ./inv as its parser has them; read once, since Invoke returns the help only once."""

from __future__ import annotations

from invoke.parser.context import ParserContext

from tasks import namespace

VERBS: dict[str, ParserContext] = {str(each.name): each for each in namespace.to_contexts()}
