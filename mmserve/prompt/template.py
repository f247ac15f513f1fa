"""Chat templates: Jinja, rendered as transformers renders them (utils/chat_template_utils.py), in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmserve.errors import CheckpointError, InvalidField


class ChatTemplate:
    """A compiled chat template. Rendering changes nothing and may happen in several threads at once."""

    def __init__(self, source: str, constants: Mapping[str, str]) -> None:
        """``constants`` are visible to every rendering (``bos_token`` and the like).

        Raises ``CheckpointError`` for a template that does not parse.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source, globals=dict(constants))
        except jinja2.TemplateError as error:
            raise CheckpointError(f"the chat template does not parse: {error}") from None
        self.takes_strings = self._shows_strings()

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """The text of ``messages``, which are in Hugging Face's form.

        Raises ``InvalidField`` where the template refuses them (for instance roles that do not take turns).
        """
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None
            )
        except Exception as error:  # whatever a template's expressions run into with these messages
            raise InvalidField(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error

    def _shows_strings(self) -> bool:
        """Whether a message's content may be a string; some templates know lists of parts only, and drop strings."""
        probe = "Is this text still there?"
        try:
            return probe in self.render([{"role": "user", "content": probe}], add_generation_prompt=True)
        except InvalidField:
            return True


class _GenerationBlocks(Extension):
    """``{% generation %}`` marks what a model wrote, for training; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's declaration)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)
