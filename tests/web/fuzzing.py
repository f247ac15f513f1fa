"""Damaged pictures and forms, sent to the application in this process; what must not grow is measured."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.web.mutations import damaged_form, damaged_picture, originals
from web.app import create_app
from web.service import Service

AT_ONCE = 8
PICTURE_ROUTES = ("/v1/vqa", "/v1/vqa", "/v1/pictures", "/v1/captions")
FORM_ROUTES = ("/v1/vqa", "/v1/pictures", "/v1/captions")


@dataclass(frozen=True)
class Held:
    """What a process holds: resident memory in bytes, open files, and files in its folder for temporary ones."""

    memory: int
    descriptors: int
    temporary: int

    @classmethod
    def now(cls, folder: Path) -> Held:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = sum(1 for _ in folder.rglob("*"))
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), files)


@dataclass
class Outcomes:
    """How many answers had each status, and what the refused ones say, by code."""

    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)

    def note(self, response: httpx.Response, what: bytes) -> None:
        self.statuses[response.status_code] += 1
        assert response.status_code < 500, (response.status_code, response.text[:500], what[:300])
        if response.status_code != 200:
            error = response.json()["error"]
            assert error["message"]
            assert len(error["message"]) < 2000
            self.codes[error["code"]] += 1


async def fuzz(service: Service, cases: int, number: int, outcomes: Outcomes) -> None:
    """``cases`` requests, half of them damaged pictures in whole forms, half damaged forms. Fails with the first answer
    that is a server error, or a refusal without its reason."""
    chance = random.Random(number)
    files = originals()
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # as a server has it; pytest keeps every record
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:

        async def one(index: int) -> None:
            if index % 2:
                data = damaged_picture(files, chance)
                asked = {"question": "What?", "max_tokens": "1"}
                route = chance.choice(PICTURE_ROUTES)
                fields = {"/v1/vqa": asked, "/v1/captions": {"max_tokens": "1"}}.get(route, {})
                response = await http.post(route, files={"image": ("a.png", data)}, data=fields)
            else:
                data, kind = damaged_form(files, chance)
                headers = [(b"Content-Type", kind.encode("utf-8", "surrogatepass"))]
                route = chance.choice(FORM_ROUTES)
                response = await http.post(route, content=_pieces(data, chance), headers=headers)
            outcomes.note(response, data)

        for start in range(0, cases, AT_ONCE):
            await asyncio.gather(*(one(i) for i in range(start, min(start + AT_ONCE, cases))))


async def _pieces(data: bytes, chance: random.Random) -> AsyncIterator[bytes]:
    """``data`` cut anywhere, as a network would."""
    size = chance.choice((1, 7, 100, 4096, 100_000)) if len(data) < 3000 else 4096
    for start in range(0, len(data), size):
        yield data[start : start + size]
