"""Output items of a response, made from the pieces of an answer, and the events that tell of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from web.openai.calls import ArgumentsSaid, CallBegun, CallEnded, Piece, Said

Event = dict[str, Any]


class Output:
    """The items so far. What methods yield are stream events without their numbers; to be told at once, as the items
    in them go on changing."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open = False
        self._logprobs: list[dict[str, Any]] = []

    def push(self, pieces: Iterable[Piece], logprobs: Iterable[dict[str, Any]] = ()) -> Iterator[Event]:
        """``logprobs`` are of the tokens that the pieces came from; only text shows them."""
        self._logprobs += logprobs
        for piece in pieces:
            match piece:
                case Said(text):
                    yield from self._said(text)
                case CallBegun(_, id_, name):
                    yield from self._close("completed")
                    yield from self._begin(_call(id_, name))
                case ArgumentsSaid(_, text):
                    self.items[-1]["arguments"] += text
                    yield self._about("response.function_call_arguments.delta", delta=text)
                case CallEnded():
                    yield from self._close("completed")

    def finish(self, status: str) -> Iterator[Event]:
        """What is open ends with ``status``, "completed" or "incomplete". An answer of nothing is an empty message."""
        if not self.items:
            yield from self._begin(_message())
            yield from self._begin_part()
        yield from self._close(status)

    def _said(self, text: str) -> Iterator[Event]:
        if not self._open or self.items[-1]["type"] != "message":
            yield from self._close("completed")
            yield from self._begin(_message())
            yield from self._begin_part()
        part = self.items[-1]["content"][0]
        part["text"] += text
        logprobs, self._logprobs = self._logprobs, []
        part["logprobs"] += logprobs
        yield self._about("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        if item["type"] != "message":
            self._logprobs = []
        self.items.append(item)
        self._open = True
        yield self._of_item("response.output_item.added")

    def _begin_part(self) -> Iterator[Event]:
        # The item was told of before it had its part, as OpenAI does.
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.items[-1]["content"].append(part)
        yield self._about("response.content_part.added", content_index=0, part=part)

    def _close(self, status: str) -> Iterator[Event]:
        if not self._open:
            return
        item = self.items[-1]
        if item["type"] == "message":
            [part] = item["content"]
            part["logprobs"] += self._logprobs
            yield self._about(
                "response.output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"]
            )
            yield self._about("response.content_part.done", content_index=0, part=part)
        else:
            yield self._about("response.function_call_arguments.done", name=item["name"], arguments=item["arguments"])
        self._logprobs = []
        item["status"] = status
        self._open = False
        yield self._of_item("response.output_item.done")

    def _about(self, kind: str, **more: Any) -> Event:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **more}

    def _of_item(self, kind: str) -> Event:
        return {"type": kind, "output_index": len(self.items) - 1, "item": self.items[-1]}


def _message() -> dict[str, Any]:
    return {"id": _new("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}


def _call(call_id: str, name: str) -> dict[str, Any]:
    return {
        "id": _new("fc"),
        "type": "function_call",
        "status": "in_progress",
        "call_id": call_id,
        "name": name,
        "arguments": "",
    }


def _new(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
