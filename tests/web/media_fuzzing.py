"""Damaged videos and sounds, sent to the application in this process, with whole ones between them."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Sequence

import httpx

from mmserve.types import MediaKind
from tests.sounds.made import chirp, encoded
from tests.vision.clips import clip
from tests.web.fuzzing import Outcomes
from tests.web.mutations import cut, flipped, headless, left_out, numbered, overwritten, repeated, spliced
from web.app import create_app
from web.service import Service

AT_ONCE = 8
WHOLE_EVERY = 10
"""Of so many requests one is whole, and asks what was asked at the beginning."""

_DAMAGE = (flipped, overwritten, cut, headless, repeated, left_out, numbered)


def originals(kind: MediaKind) -> tuple[bytes, ...]:
    """Short files in every accepted format of a kind."""
    if kind == "video":
        return tuple(clip(1.0, size=(40, 32), container=name) for name in ("mp4", "webm", "matroska", "avi"))
    waves = chirp(6_000, 16_000)
    return tuple(encoded(waves, 16_000, name) for name in ("wav", "wav-mulaw", "mp3", "flac", "opus", "vorbis"))


def damaged(files: Sequence[bytes], chance: random.Random) -> bytes:
    data = chance.choice(files)
    if chance.random() < 0.1:
        return spliced(data, chance, chance.choice(files))
    for _ in range(chance.choice((1, 1, 2, 3))):
        if 2 <= len(data) <= 200_000:
            data = chance.choice(_DAMAGE)(data, chance)
    return data


async def fuzz_media(service: Service, kind: MediaKind, cases: int, number: int, outcomes: Outcomes) -> None:
    """``cases`` requests about damaged files of ``kind``, in forms and OpenAI's messages. Fails with the first answer
    that is a server error, a refusal without its reason, or another answer to a whole file than at the beginning."""
    chance = random.Random(number)
    files = originals(kind)
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        before = [await _form(http, kind, data) for data in files]
        assert {response.status_code for response in before} == {200}, before[0].text
        right = [response.json()["answer"] for response in before]

        async def one(index: int) -> None:
            if index % WHOLE_EVERY == 0:
                place = chance.randrange(len(files))
                response = await _form(http, kind, files[place])
                assert response.json()["answer"] == right[place]
                return
            data = damaged(files, chance)
            response = await (_form if index % 2 else _message)(http, kind, data)
            outcomes.note(response, data)

        for start in range(0, cases, AT_ONCE):
            await asyncio.gather(*(one(i) for i in range(start, min(start + AT_ONCE, cases))))


async def _form(http: httpx.AsyncClient, kind: MediaKind, data: bytes) -> httpx.Response:
    fields = {"question": "What?", "max_tokens": "2", "ignore_eos": "true"}
    return await http.post("/v1/vqa", files={kind: ("a", data)}, data=fields)


async def _message(http: httpx.AsyncClient, kind: MediaKind, data: bytes) -> httpx.Response:
    name, address = f"{kind}_url", f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
    content = [{"type": name, name: {"url": address}}, {"type": "text", "text": "What?"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
    return await http.post("/v1/chat/completions", json=body)
