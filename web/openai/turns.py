"""Tools, calls and results as turns that every chat template knows: system, user and assistant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mmserve.errors import RequestError
from mmserve.types import Message, TextPart
from web.openai.tools import Toolbox

_PLACE = re.compile(r"messages\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Turns:
    """``messages`` for the prompt; ``origins`` says which message of the body each comes from (its first, of several),
    ``None`` for one that was added, and ``exact`` whether the parts of both are numbered alike."""

    messages: list[Message]
    origins: list[int | None]
    exact: list[bool]

    @contextmanager
    def named(self) -> Iterator[None]:
        """An error about one of ``messages`` names the body's own message."""
        try:
            yield
        except RequestError as error:
            place = _PLACE.match(error.param or "")
            if place is None or error.param is None or (index := int(place[1])) >= len(self.origins):
                raise
            origin = self.origins[index]
            rest = error.param[place.end() :] if self.exact[index] else ""
            param = "messages" if origin is None else f"messages[{origin}]{rest}"
            raise type(error)(error.message, param=param) from error


def turns_of(messages: Sequence[Message], toolbox: Toolbox | None = None) -> Turns:
    """``messages``, those of the role "tool" as the users' that Qwen's templates make of them, and the ``toolbox`` in
    the system prompt, behind the caller's own."""
    made: list[Message] = []
    origins: list[int | None] = []
    exact: list[bool] = []
    open_results = False
    for i, message in enumerate(messages):
        if message.role != "tool":
            made.append(message)
            origins.append(i)
            exact.append(True)
            open_results = False
            continue
        parts = (TextPart("<tool_response>\n"), *message.parts, TextPart("\n</tool_response>"))
        if open_results:
            made[-1] = Message("user", (*made[-1].parts, TextPart("\n"), *parts))
        else:
            made.append(Message("user", parts))
            origins.append(i)
            exact.append(False)
        open_results = True
    if toolbox is not None:
        told = TextPart(toolbox.system_text())
        if made and made[0].role == "system":
            made[0] = Message("system", (*made[0].parts, TextPart("\n\n"), told))
        else:
            made.insert(0, Message("system", (told,)))
            origins.insert(0, None)
            exact.insert(0, False)
    return Turns(made, origins, exact)
