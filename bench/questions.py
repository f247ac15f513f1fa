"""Requests of the kinds that a server of pictures gets, ready to send, each with a check of its answer."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from bench.soak_traffic import picture
from bench.wire import Reply, form, post

NAMES = ["shape", "color", "count"]
SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square", "triangle", "other"]},
        "color": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": NAMES,
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Question:
    """``wrong`` says what is wrong with a 200's body, or nothing."""

    kind: str
    request: bytes
    wrong: Callable[[Reply], str]


def known_pictures(seed: int, count: int = 100) -> list[bytes]:
    rng = random.Random(seed)
    return [picture(rng) for _ in range(count)]


class Questions:
    """An endless choice: pictures mostly of the ``known``, sometimes new; a form, a stream, a JSON answer, or text."""

    def __init__(self, known: Sequence[bytes], seed: str) -> None:
        self._rng = random.Random(seed)
        self._known = known
        self._kinds: tuple[tuple[float, Callable[[], Question]], ...] = (
            (45, self._form),
            (25, self._stream),
            (15, self._structured),
            (15, self._text),
        )

    def next(self) -> Question:
        (kind,) = self._rng.choices([kind for _, kind in self._kinds], [weight for weight, _ in self._kinds])
        return kind()

    def _picture(self) -> bytes:
        which = self._rng.random()
        if which < 0.1:
            return picture(self._rng)
        return self._rng.choice(self._known[:8] if which < 0.6 else self._known)

    def _form(self) -> Question:
        fields = {"question": self._rng.choice(("What is this?", "is there a red shape?")), "max_tokens": "12"}
        return Question("form", form("/v1/vqa", fields, [self._picture()]), _no_answer)

    def _stream(self) -> Question:
        return Question("stream", self._chat("what color is the shape?", stream=True, max_tokens=12), _no_stream)

    def _structured(self) -> Question:
        answer = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA}}
        return Question("json", self._chat("Describe it.", response_format=answer, max_tokens=80), _no_json)

    def _text(self) -> Question:
        messages = [{"role": "user", "content": f"Say {self._rng.randrange(1000)}."}]
        body = {"messages": messages, "max_tokens": 12, "temperature": 1.0}
        return Question("text", post("/v1/chat/completions", json.dumps(body).encode()), _no_choice)

    def _chat(self, question: str, **fields: Any) -> bytes:
        url = "data:image/png;base64," + base64.b64encode(self._picture()).decode()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        body = {"messages": [{"role": "user", "content": parts}], **fields}
        return post("/v1/chat/completions", json.dumps(body).encode())


def large_upload() -> Question:
    """A form with a picture of about 1 MB."""
    file = io.BytesIO()
    Image.frombytes("RGB", (640, 540), random.Random(0).randbytes(3 * 640 * 540)).save(file, "PNG")
    fields = {"question": "What is this?", "max_tokens": "4"}
    return Question("slow upload", form("/v1/vqa", fields, [file.getvalue()]), _no_answer)


def _no_answer(reply: Reply) -> str:
    return "" if reply.json().get("finish_reason") in ("stop", "length") else f"no answer: {reply.body[:200]!r}"


def _no_choice(reply: Reply) -> str:
    reason = reply.json()["choices"][0]["finish_reason"]
    return "" if reason in ("stop", "length") else f"no answer: {reply.body[:200]!r}"


def _no_json(reply: Reply) -> str:
    found = json.loads(reply.json()["choices"][0]["message"]["content"])
    return "" if found.keys() == set(NAMES) else f"not what was asked: {found}"


def _no_stream(reply: Reply) -> str:
    *events, last = reply.events() or [""]
    bodies = [json.loads(event) for event in events]
    reasons = [choice["finish_reason"] for body in bodies for choice in body.get("choices", ())]
    if last == "[DONE]" and {"stop", "length"} & set(reasons):
        return ""
    return f"a stream ended with {reply.events()[-2:]}"
