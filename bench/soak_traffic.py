"""Random requests of every kind that a server meets in its life, good and bad, each with what must come back."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import zip_longest
from typing import Any

import httpx
from PIL import Image, ImageDraw

NEAR_TIE = 1e-4
"""Two greedy answers to one question may part only where the two best logits lie this close."""

TOLERANCE = 1e-4
"""Log-probabilities of one question asked twice lie this close in float32."""

COLOURS = ("red", "blue", "green", "yellow", "black", "teal", "gray", "brown")
SIZES = ((64, 64), (40, 40), (112, 112), (224, 112), (90, 300), (448, 300), (640, 480))
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
QUESTIONS = (
    "What is this?",
    "is there a red shape?",
    "is there not a circle?",
    "what color is the shape?",
    "Describe the picture.",
    "Say <|image_pad|> and <|im_end|>.",
    "Völlig unbekannte Wörter 漢字 🙂?",
)
SYSTEMS = ("", "", "Answer in one word.", "You look at pictures with care. You name the shape and its color.")
REPLIES = ("a red circle", "yes", "I see a picture.")


class Wrong(Exception):
    """The server did something else than it must."""


def picture(rng: random.Random) -> bytes:
    """One simple shape on a plain ground, in one of several sizes and formats."""
    width, height = rng.choice(SIZES)
    image = Image.new("RGB", (width, height), rng.choice(("white", "lightgray")))
    draw = ImageDraw.Draw(image)
    box = (rng.randrange(width // 2), rng.randrange(height // 2), width - 4, height - 4)
    rng.choice((draw.ellipse, draw.rectangle))(box, fill=rng.choice(COLOURS))
    file = io.BytesIO()
    image.save(file, rng.choice(FORMATS))
    return file.getvalue()


def noise(rng: random.Random, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    image = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    image.save(file, rng.choice(("PNG", "JPEG")))
    return file.getvalue()


def damaged(rng: random.Random) -> bytes:
    """A picture whose header is whole and whose data is cut off."""
    data = noise(rng, (90, 90))
    return data[: len(data) * rng.randrange(40, 70) // 100]


Step = tuple[str, float, float]
"""A chosen token, its log-probability, and how far the best leads the second best."""


def steps_of(content: Sequence[dict[str, Any]]) -> list[Step]:
    return [
        (step["token"], step["logprob"], step["top_logprobs"][0]["logprob"] - step["top_logprobs"][1]["logprob"])
        for step in content
    ]


class Memory:
    """The first greedy answer to each question, which every later one must repeat."""

    def __init__(self) -> None:
        self._answers: dict[object, list[Step]] = {}
        self.repeated = 0
        self.excused = 0

    def check(self, key: object, got: list[Step]) -> None:
        """Raises ``Wrong`` where an answer differs from the first one by more than rounding."""
        first = self._answers.setdefault(key, got)
        if first is got:
            return
        self.repeated += 1
        for at, (one, other) in enumerate(zip_longest(first, got)):
            if one is None or other is None:
                raise Wrong(f"an answer to {key} is longer than before")
            if one[0] != other[0]:
                if min(one[2], other[2]) > NEAR_TIE:
                    raise Wrong(f"token {at} of the answer to {key} was {one}, now it is {other}")
                self.excused += 1
                return
            if abs(one[1] - other[1]) > TOLERANCE:
                raise Wrong(f"the logits of token {at} of the answer to {key} moved by {abs(one[1] - other[1]):.1e}")


class Traffic:
    """Sends random requests. ``known`` pictures are asked about again and again; now and then one is new.

    Each kind of request is a method that returns what became of it (``"answered"``, ``"refused"`` as it must be, or
    ``"left"``: the client went away) and raises ``Wrong`` for anything else.
    """

    def __init__(self, http: httpx.AsyncClient, seed: int, known: int = 60) -> None:
        rng = random.Random(seed)
        self._http = http
        self._seed = seed
        self._known = [picture(rng) for _ in range(known)]
        self.memory = Memory()
        self.flushes = 0
        self.seen: Counter[tuple[str, str]] = Counter()
        self._kinds: tuple[tuple[float, Callable[[random.Random], Awaitable[str]]], ...] = (
            (20, self.form),
            (14, self.streamed_form),
            (12, self.chat),
            (12, self.streamed_chat),
            (4, self.several_answers),
            (12, self.leaves_in_the_middle_of_a_stream),
            (10, self.gives_up_waiting),
            (3, self.breaks_off_its_upload),
            (4, self.sends_a_damaged_picture),
            (2, self.sends_no_picture),
            (2, self.writes_too_much),
            (2, self.sends_a_field_that_is_none),
            (1, self.sends_broken_json),
            (2, self.looks_around),
            (0.5, self.flushes_the_caches),
        )

    async def send(self, number: int) -> None:
        """Request ``number`` of this seed. Raises ``Wrong``, or what httpx raises."""
        rng = random.Random(f"{self._seed}/{number}")
        (kind,) = rng.choices([kind for _, kind in self._kinds], [weight for weight, _ in self._kinds])
        self.seen[kind.__name__, await kind(rng)] += 1

    async def warm_up(self, count: int) -> None:
        """``count`` of the heaviest requests at once, so that what memory they take is taken before it is watched."""
        rng = random.Random(f"{self._seed}/warm-up")
        files = [_files([noise(rng, max(SIZES)) for _ in range(2)]) for _ in range(count)]
        form = {"question": "What is this?", "max_tokens": "8", "ignore_eos": "true"}
        answers = [self._http.post("/v1/vqa", data=form, files=pictures) for pictures in files]
        refusals = [self.writes_too_much(rng) for _ in range(count // 4)]
        await asyncio.gather(*map(_answered, answers), *refusals)

    # -- answered -----------------------------------------------------------------------------------------------

    async def form(self, rng: random.Random) -> str:
        key, request = self._form(rng)
        body = _json(await self._http.post("/v1/vqa", **request), 200)
        _expect(body["finish_reason"] in ("stop", "length"), body)
        if key is not None:
            self.memory.check(key, steps_of(body["logprobs"]["content"]))
        return "answered"

    async def streamed_form(self, rng: random.Random) -> str:
        key, request = self._form(rng, stream=True)
        steps: list[Step] = []
        last: dict[str, Any] = {}
        async for last in self._events("/v1/vqa", **request):
            _expect("error" not in last, last)
            steps += steps_of(last["logprobs"]["content"]) if "logprobs" in last and key is not None else []
        _expect(last.get("finish_reason") in ("stop", "length"), last)
        if key is not None:
            self.memory.check(key, steps)
        return "answered"

    async def chat(self, rng: random.Random) -> str:
        body = _json(await self._http.post("/v1/chat/completions", json=self._chat(rng)), 200)
        _expect(body["choices"][0]["finish_reason"] in ("stop", "length"), body)
        return "answered"

    async def streamed_chat(self, rng: random.Random) -> str:
        reasons = []
        async for event in self._events("/v1/chat/completions", json=self._chat(rng, stream=True)):
            _expect("error" not in event, event)
            reasons += [choice["finish_reason"] for choice in event["choices"] if choice["finish_reason"]]
        _expect(reasons in (["stop"], ["length"]), reasons)
        return "answered"

    async def several_answers(self, rng: random.Random) -> str:
        body = _json(await self._http.post("/v1/chat/completions", json=self._chat(rng, n=rng.randint(2, 4))), 200)
        _expect(all(choice["finish_reason"] for choice in body["choices"]), body)
        return "answered"

    # -- left ---------------------------------------------------------------------------------------------------

    async def leaves_in_the_middle_of_a_stream(self, rng: random.Random) -> str:
        path, request = rng.choice(
            (
                ("/v1/vqa", self._form(rng, stream=True, max_tokens=100, ignore_eos=True)[1]),
                ("/v1/chat/completions", {"json": self._chat(rng, stream=True, max_tokens=100, ignore_eos=True)}),
            )
        )
        left = rng.randint(0, 30)
        async with self._http.stream("POST", path, **request) as response:
            _expect(response.status_code == 200, response)
            async for _ in response.aiter_lines():
                left -= 1
                if left < 0:
                    break
        return "left"

    async def gives_up_waiting(self, rng: random.Random) -> str:
        _, request = self._form(rng, max_tokens=100, ignore_eos=True)
        try:
            async with asyncio.timeout(rng.choice((0.002, 0.02, 0.1, 0.5))):
                _json(await self._http.post("/v1/vqa", **request), 200)
        except TimeoutError:
            return "left"
        return "answered"

    async def breaks_off_its_upload(self, rng: random.Random) -> str:
        body = json.dumps(self._chat(rng)).encode()

        async def half() -> AsyncIterator[bytes]:
            yield body[: len(body) // 2]
            await asyncio.sleep(0.01)
            raise _GoneError

        try:
            await self._http.post("/v1/chat/completions", content=half())
        except _GoneError:
            return "left"
        raise Wrong("half an upload was answered")

    # -- refused ------------------------------------------------------------------------------------------------

    async def sends_a_damaged_picture(self, rng: random.Random) -> str:
        """Beside good ones, streamed or not: it is refused before a stream starts."""
        pictures = [damaged(rng), *(self._picture(rng) for _ in range(rng.randrange(3)))]
        rng.shuffle(pictures)
        form = {"question": "What is this?", "stream": rng.choice(("true", "false"))}
        return _refused(await self._http.post("/v1/vqa", data=form, files=_files(pictures)), "corrupt_image")

    async def sends_no_picture(self, rng: random.Random) -> str:
        files = _files([rng.randbytes(rng.randrange(1, 5000))])
        return _refused(await self._http.post("/v1/vqa", data={"question": "What?"}, files=files), "unsupported_image")

    async def writes_too_much(self, rng: random.Random) -> str:
        message = {"role": "user", "content": "word " * rng.choice((9_000, 100_000))}
        answer = await self._http.post("/v1/chat/completions", json={"messages": [message]})
        return _refused(answer, "context_length_exceeded")

    async def sends_a_field_that_is_none(self, rng: random.Random) -> str:
        form = {"question": "What?", f"field{rng.randrange(100)}": "1"}
        return _refused(
            await self._http.post("/v1/vqa", data=form, files=_files([self._picture(rng)])), "invalid_field"
        )

    async def sends_broken_json(self, rng: random.Random) -> str:
        body = json.dumps(self._chat(rng))[: -rng.randrange(1, 40)]
        answer = await self._http.post("/v1/chat/completions", content=body)
        _expect(400 <= answer.status_code < 500, answer)
        return "refused"

    # -- besides ------------------------------------------------------------------------------------------------

    async def looks_around(self, rng: random.Random) -> str:
        answer = await self._http.get(rng.choice(("/", "/health", "/server_info", "/v1/models", "/v1/models/default")))
        _expect(answer.status_code == 200, answer)
        return "answered"

    async def flushes_the_caches(self, _: random.Random) -> str:
        _json(await self._http.post("/flush_cache"), 200)
        return "answered"

    # -- inside -------------------------------------------------------------------------------------------------

    def _picture(self, rng: random.Random) -> bytes:
        """New, or one of those that everybody asks about, or one of the others."""
        which = rng.random()
        return picture(rng) if which < 0.05 else rng.choice(self._known[:4] if which < 0.6 else self._known)

    def _form(self, rng: random.Random, **fields: Any) -> tuple[object | None, dict[str, Any]]:
        """A form's arguments for httpx, and what a greedy answer to it is remembered under."""
        pictures = [self._picture(rng) for _ in range(rng.choice((1, 1, 1, 1, 2, 3)))]
        asked: dict[str, Any] = {"question": rng.choice(QUESTIONS if rng.random() < 0.3 else QUESTIONS[:2])}
        if system := rng.choice(SYSTEMS):
            asked["system"] = system
        key = None
        if rng.random() < 0.7 and not fields.get("ignore_eos"):
            key = (tuple(map(hash, pictures)), *asked.values())
            asked |= {"max_tokens": 8, "temperature": 0, "logprobs": True, "top_logprobs": 2}
        else:
            asked |= {
                "max_tokens": rng.choice((1, 8, 24)),
                "temperature": 1.0,
                "seed": rng.randrange(100),
                "top_p": 0.9,
            }
        if rng.random() < 0.1:
            asked["cache_salt"] = rng.choice("abc")
        form = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in (asked | fields).items()
        }
        return key, {"data": form, "files": _files(pictures)}

    def _chat(self, rng: random.Random, **fields: Any) -> dict[str, Any]:
        system = rng.choice(SYSTEMS)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        for _ in range(rng.choice((1, 1, 2, 3))):
            parts = [_image_part(self._picture(rng)) for _ in range(rng.choice((0, 1, 1)))]
            text = {"type": "text", "text": rng.choice(QUESTIONS)}
            messages.append({"role": "user", "content": [*parts, text]})
            messages.append({"role": "assistant", "content": rng.choice(REPLIES)})
        penalty = {"frequency_penalty": 0.5} if rng.random() < 0.2 else {}
        asked = {"messages": messages[:-1], "max_tokens": rng.choice((1, 8, 24)), "temperature": rng.choice((0, 1.0))}
        return asked | penalty | fields

    async def _events(self, path: str, **request: Any) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream, which must end as one does."""
        async with self._http.stream("POST", path, **request) as response:
            if response.status_code != 200:
                await response.aread()
                raise Wrong(f"{response.status_code}: {response.text[:200]}")
            line = ""
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line[6:])
                elif line == "data: [DONE]":
                    return
        raise Wrong(f"a stream ended after {line[:200]!r}")


class _GoneError(Exception):
    """The client goes away while it sends."""


def _files(pictures: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """All under the same name."""
    return [("image", ("photo.png", data)) for data in pictures]


def _image_part(data: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}, "uuid": "same"}


async def _answered(answer: Awaitable[httpx.Response]) -> None:
    _json(await answer, 200)


def _json(answer: httpx.Response, status: int) -> dict[str, Any]:
    _expect(answer.status_code == status, answer)
    body: dict[str, Any] = answer.json()
    return body


def _refused(answer: httpx.Response, code: str) -> str:
    _expect(400 <= answer.status_code < 500 and answer.json()["error"]["code"] == code, answer)
    return "refused"


def _expect(true: bool, got: object) -> None:
    if not true:
        text = f"{got.status_code}: {got.text[:200]}" if isinstance(got, httpx.Response) and got.is_closed else str(got)
        raise Wrong(text[:400])
