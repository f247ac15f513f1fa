"""Input items of the Responses API as turns of a chat."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from mmserve.errors import InvalidField, RequestError
from web.errors import explain
from web.schemas import ChatMessage

_PLACE = re.compile(r"messages\[(\d+)\]")
_TEXTS = ("input_text", "output_text", "text")


class Conversation:
    """Turns, and the field that each comes from."""

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self._places: list[tuple[str, bool]] = []
        self._raw: list[dict[str, Any]] = []

    def add(self, message: dict[str, Any], place: str, *, exact: bool = True) -> None:
        """Raises ``InvalidField``. ``exact`` says that parts are numbered in the field as in the message."""
        try:
            checked = ChatMessage.model_validate(message, strict=True)
        except ValidationError as error:
            found = explain(error.errors(include_url=False, include_context=False, include_input=False))
            where = f"{place}.{found.param}" if exact and found.param else place
            raise InvalidField(f"{place}: {found.message}", param=where) from None
        self.messages.append(checked)
        self._raw.append(message)
        self._places.append((place, exact))

    def add_call(self, call: dict[str, Any], place: str) -> None:
        """A call belongs to the assistant's turn before it, where there is one."""
        if self._raw and self._raw[-1]["role"] == "assistant":
            last = self._raw.pop()
            self.messages.pop()
            first, exact = self._places.pop()
            self.add({**last, "tool_calls": [*last.get("tool_calls", ()), call]}, first, exact=exact)
        else:
            self.add({"role": "assistant", "content": None, "tool_calls": [call]}, place, exact=False)

    def add_items(self, items: Sequence[Any], place: str, *, exact: bool = True) -> None:
        """Raises ``InvalidField`` for an item that means nothing here."""
        for i, item in enumerate(items):
            where = f"{place}[{i}]" if exact else place
            if not isinstance(item, Mapping):
                raise InvalidField(f"{where} must be an object", param=where)
            kind = item.get("type") or ("message" if "role" in item else None)
            if kind == "message":
                content = item.get("content")
                if isinstance(content, list):
                    content = [_part(part, f"{where}.content[{j}]") for j, part in enumerate(content)]
                self.add({"role": item.get("role"), "content": content}, where, exact=exact)
            elif kind == "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                self.add_call({"id": item.get("call_id"), "type": "function", "function": function}, where)
            elif kind == "function_call_output":
                output = item.get("output")
                if isinstance(output, list):
                    output = [_part(part, f"{where}.output[{j}]") for j, part in enumerate(output)]
                self.add({"role": "tool", "tool_call_id": item.get("call_id"), "content": output}, where, exact=False)
            else:
                raise InvalidField(
                    f"{where} is of a type that means nothing here; there are message, function_call and "
                    "function_call_output",
                    param=f"{where}.type",
                )

    @contextmanager
    def named(self) -> Iterator[None]:
        """An error about one of the messages names the field that it comes from."""
        try:
            yield
        except RequestError as error:
            place = _PLACE.match(error.param or "")
            if place is None or error.param is None:
                if error.param == "messages":
                    raise type(error)(error.message, param="input") from error
                raise
            field, exact = self._places[int(place[1])]
            raise type(error)(error.message, param=field + (error.param[place.end() :] if exact else "")) from error


def _part(part: object, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping):
        if kind in _TEXTS:
            return {"type": "text", "text": part.get("text")}
        if kind == "refusal":
            return {"type": "refusal", "refusal": part.get("refusal")}
        if kind == "input_image":
            address = part.get("image_url") or part.get("file_id")
            if not isinstance(address, str):
                raise InvalidField(
                    f"{where} needs image_url, a data URI; or the id of a picture that was sent once", param=where
                )
            return {"type": "image_url", "image_url": {"url": address, "detail": part.get("detail")}}
        if kind == "input_audio":
            return {"type": "input_audio", "input_audio": part.get("input_audio")}
        if kind == "input_video":
            return {"type": "video_url", "video_url": part.get("video_url")}
    raise InvalidField(
        f"{where} is of a type that means nothing here; there are input_text, input_image, "
        "input_audio, input_video (with video_url) and output_text",
        param=f"{where}.type",
    )
