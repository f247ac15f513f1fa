"""Sounds over HTTP, asked of a small random Qwen2-Audio: every way in, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import mmserve as sgl
from mmserve import AsyncClient, Client
from mmserve.client.sounds import SoundFile, read_sound
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.errors import AudioTooLong, CorruptAudio, InvalidField, TooManyMedia, UnsupportedAudio, UnsupportedMedia
from mmserve.prompt import PromptBuilder
from tests.checkpoints import tiny_qwen2_audio, tiny_qwen2_vl
from tests.models.equality import resolve
from tests.sounds.made import chirp, encoded, noise, sine
from tests.sounds.test_header import wav_file
from tests.web.fakes import FakeEngine, serve
from web.app import create_app
from web.service import ServedModel, Service

pytestmark = pytest.mark.anyio

SOUND = encoded(chirp(20_001, 16_000), 16_000, "mp3")
ROWS = 31
LIMITS = Limits(max_sounds=2, max_sound_seconds=60, max_sound_bytes=200_000)
FIELDS = {"question": "What is it?", "max_tokens": "4", "ignore_eos": "true"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    checkpoint = resolve(tiny_qwen2_audio(tmp_path_factory.mktemp("audio"), seconds=3))
    engine = LocalEngineClient(
        build_engine(checkpoint, EngineConfig(device="cpu", kv_slots=4096, check_invariants=True))
    )
    yield Service(ServedModel("ears"), PromptBuilder(checkpoint, LIMITS), engine, checkpoint.max_model_len, LIMITS)
    asyncio.run(engine.close())


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with serve(service) as url:
        yield url


def audio(*files: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("audio", (f"{i}.bin", data, "application/octet-stream")) for i, data in enumerate(files)]


def uri(data: bytes, media_type: str = "audio/mpeg") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def said(*parts: Any) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, "ignore_eos": True, "temperature": 0}


class TestForm:
    async def test_an_answer_says_what_was_heard(self, http: httpx.AsyncClient) -> None:
        reply = await http.post("/v1/vqa", files=audio(SOUND), data=FIELDS)
        body = reply.json()
        assert reply.status_code == 200, body
        assert body["usage"]["prompt_tokens_details"]["audio_tokens"] == ROWS
        assert body["usage"]["prompt_tokens_details"]["image_tokens"] == 0
        assert body["images"] == []
        [heard] = body["sounds"]
        assert heard == {"format": "MP3", "rate": 16_000, "channels": 1, "heard_seconds": 1.25, "tokens": ROWS}

    async def test_several_sounds_stand_in_their_order(self, http: httpx.AsyncClient) -> None:
        files = audio(SOUND, encoded(sine(8_000, 8_000), 8_000, "flac"))
        body = (await http.post("/v1/vqa", files=files, data=FIELDS)).json()
        assert [(each["format"], each["tokens"]) for each in body["sounds"]] == [("MP3", ROWS), ("FLAC", 25)]

    async def test_streamed(self, http: httpx.AsyncClient) -> None:
        reply = await http.post("/v1/vqa", files=audio(SOUND), data={**FIELDS, "stream": "true"})
        frames = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        assert frames[-1]["sounds"][0]["tokens"] == ROWS

    @pytest.mark.parametrize(
        ("data", "status", "code"),
        [
            (b"", 400, "unsupported_audio"),
            (b"\x89PNG\r\n\x1a\n" + bytes(40), 400, "unsupported_audio"),
            (SOUND[: len(SOUND) // 2], 400, "corrupt_audio"),
            (wav_file(size=0xFFFFFFFE), 400, "audio_too_long"),
            (encoded(noise(40_000), 16_000, "flac")[:40_000], 400, "corrupt_audio"),  # found when it is decoded
            (wav_file(struct.pack("<600f", *[float("nan")] * 600), codec=3, block=4, bits=32), 400, "corrupt_audio"),
            (wav_file(bytes(100)), 400, "unsupported_audio"),  # too short to be heard
            (bytes(LIMITS.max_sound_bytes + 1), 413, "audio_too_large"),
        ],
        ids=["empty", "a picture", "half", "hours", "half a flac", "no numbers", "too short", "too large"],
    )
    async def test_what_cannot_be_heard(self, data: bytes, status: int, code: str, http: httpx.AsyncClient) -> None:
        reply = await http.post("/v1/vqa", files=audio(data), data=FIELDS)
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        assert reply.json()["error"]["param"] == "audio"
        assert (await http.post("/v1/vqa", files=audio(SOUND), data=FIELDS)).status_code == 200

    async def test_too_many(self, http: httpx.AsyncClient) -> None:
        error = (await http.post("/v1/vqa", files=audio(*[SOUND] * 3), data=FIELDS)).json()["error"]
        assert (error["code"], error["param"]) == ("too_many_media", "audio")

    async def test_a_kind_that_the_model_does_not_take(self, http: httpx.AsyncClient) -> None:
        reply = await http.post("/v1/vqa", files={"image": ("a.png", b"\x89PNG\r\n\x1a\n")}, data=FIELDS)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"], error["param"]) == (400, "unsupported_media", "image")
        assert "ears" in error["message"] or "sounds" in error["message"]

    async def test_text_instead_of_a_file(self, http: httpx.AsyncClient) -> None:
        error = (await http.post("/v1/vqa", data={**FIELDS, "audio": "a.mp3"}, files=audio(SOUND))).json()["error"]
        assert error["param"] == "audio"


class TestChat:
    @pytest.mark.parametrize(
        "part",
        [
            {"type": "input_audio", "input_audio": {"data": base64.b64encode(SOUND).decode(), "format": "mp3"}},
            {"type": "input_audio", "input_audio": {"data": base64.b64encode(SOUND).decode(), "format": "wav"}},
            {"type": "audio_url", "audio_url": {"url": uri(SOUND)}},
            {"type": "audio_url", "audio_url": uri(SOUND, "application/octet-stream")},
        ],
    )
    async def test_every_spelling_is_the_same_sound(self, part: dict[str, Any], http: httpx.AsyncClient) -> None:
        wanted = (await http.post("/v1/vqa", files=audio(SOUND), data=FIELDS)).json()
        reply = await http.post("/v1/chat/completions", json=said(part))
        body = reply.json()
        assert reply.status_code == 200, body
        assert body["choices"][0]["message"]["content"] == wanted["answer"]
        assert body["usage"]["prompt_tokens_details"]["audio_tokens"] == ROWS
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] > ROWS

    @pytest.mark.parametrize(
        ("part", "code"),
        [
            ({"type": "input_audio", "input_audio": {"data": "%%%", "format": "mp3"}}, "invalid_field"),
            ({"type": "input_audio", "input_audio": {"data": "", "format": "mp3"}}, "unsupported_audio"),
            ({"type": "input_audio"}, "invalid_field"),
            ({"type": "audio_url", "audio_url": {"url": uri(SOUND, "image/png")}}, "unsupported_audio"),
            ({"type": "audio_url", "audio_url": {"url": "https://example.org/a.mp3"}}, "invalid_field"),
            ({"type": "audio_url", "audio_url": {"url": uri(SOUND[:300])}}, "corrupt_audio"),
        ],
    )
    async def test_refusals_name_the_part(self, part: dict[str, Any], code: str, http: httpx.AsyncClient) -> None:
        reply = await http.post("/v1/chat/completions", json=said(part))
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, code)
        assert error["param"].startswith("messages[0].content[0]")

    async def test_too_many(self, http: httpx.AsyncClient) -> None:
        parts = [{"type": "audio_url", "audio_url": {"url": uri(SOUND)}}] * 3
        error = (await http.post("/v1/chat/completions", json=said(*parts))).json()["error"]
        assert (error["code"], error["param"]) == ("too_many_media", "messages[0].content[2].audio_url")

    async def test_a_placeholder_that_a_caller_types_is_text(self, http: httpx.AsyncClient) -> None:
        body = (await http.post("/v1/chat/completions", json=said({"type": "text", "text": "<|AUDIO|>"}))).json()
        assert body["usage"]["prompt_tokens_details"]["audio_tokens"] == 0

    async def test_responses(self, http: httpx.AsyncClient) -> None:
        part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(SOUND).decode(), "format": "mp3"}}
        item = {"role": "user", "content": [part, {"type": "input_text", "text": "What is it?"}]}
        reply = await http.post("/v1/responses", json={"input": [item], "max_output_tokens": 16})
        assert reply.status_code == 200, reply.json()
        assert reply.json()["usage"]["input_tokens"] > ROWS

    def test_openais_own_client(self, url: str) -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
            part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(SOUND).decode(), "format": "mp3"}}
            messages: Any = said(part)["messages"]
            answer = api.chat.completions.create(model="ears", messages=messages, max_tokens=4)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.audio_tokens == ROWS


class TestModelsThatDoNotHear:
    async def test_a_clear_refusal(self, tmp_path: Path) -> None:
        checkpoint = resolve(tiny_qwen2_vl(tmp_path))
        eyes = Service(ServedModel("eyes"), PromptBuilder(checkpoint, LIMITS), FakeEngine(), 2048, LIMITS)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(eyes)), base_url="http://test") as client:
            reply = await client.post("/v1/vqa", files=audio(SOUND), data=FIELDS)
            chat = await client.post(
                "/v1/chat/completions", json=said({"type": "audio_url", "audio_url": {"url": uri(SOUND)}})
            )
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_media")
        assert reply.json()["error"]["param"] == "audio"
        assert "no sounds" in reply.json()["error"]["message"]
        assert (chat.status_code, chat.json()["error"]["code"]) == (400, "unsupported_media")


class TestClient:
    def test_asking(self, url: str, tmp_path: Path) -> None:
        path = tmp_path / "a.mp3"
        path.write_bytes(SOUND)
        with Client(url) as client:
            first = client.ask([], "What is it?", audio=path, max_tokens=4, ignore_eos=True)
            again = client.ask([], "What is it?", audio=[SOUND], max_tokens=4, ignore_eos=True)
            chatted = client.chat(
                [{"role": "user", "content": [client.sound(path), "What is it?"]}], max_tokens=4, ignore_eos=True
            )
            with client.stream([], "What is it?", audio=path, max_tokens=4, ignore_eos=True) as stream:
                streamed = "".join(stream)
        assert first.text == again.text == chatted.text == streamed
        assert first.usage.audio_tokens == ROWS

    async def test_asking_from_asyncio(self, url: str) -> None:
        async with AsyncClient(url) as client:
            answer = await client.ask([], "What is it?", audio=await client.sound(SOUND), max_tokens=4)
            with pytest.raises(CorruptAudio):
                await client.ask([], "What is it?", audio=SOUND[:400])
        assert answer.usage.audio_tokens == ROWS

    def test_refusals_come_as_their_class(self, url: str) -> None:
        with Client(url) as client:
            with pytest.raises(AudioTooLong):
                client.ask([], "?", audio=wav_file(size=0xFFFFFFFE))
            with pytest.raises(UnsupportedAudio):
                client.ask([], "?", audio=b"text")
            with pytest.raises(TooManyMedia):
                client.ask([], "?", audio=[SOUND] * 3)
            with pytest.raises(UnsupportedMedia):
                client.ask(b"\x89PNG\r\n\x1a\n", "?")
            with pytest.raises(InvalidField, match="at least one picture"):
                client.ask([], "?")

    def test_what_a_sound_may_be(self, tmp_path: Path) -> None:
        path = tmp_path / "a.wav"
        path.write_bytes(encoded(noise(400), 16_000))
        with path.open("rb") as file:
            made = [
                read_sound(each) for each in (path, str(path), path.read_bytes(), memoryview(path.read_bytes()), file)
            ]
        assert len({each.data for each in made}) == 1
        assert [each.name for each in made] == ["a.wav", "a.wav", "sound", "sound", "a.wav"]
        assert {(each.format, each.media_type) for each in made} == {("wav", "audio/wav")}
        assert read_sound(made[0]) is made[0]
        assert SoundFile("x", b"??").format == ""
        with pytest.raises(TypeError, match="a sound is"):
            read_sound(3)  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError):
            read_sound(tmp_path / "none.wav")


@sgl.function
def hear(s: Any, sound: Any, question: str) -> None:
    s += sgl.user(sgl.audio(sound) + question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=4, ignore_eos=True))


class TestLanguage:
    @pytest.mark.parametrize("sound", [SOUND, uri(SOUND)])
    def test_over_http_and_in_this_process(self, sound: Any, url: str, tmp_path: Path) -> None:
        with Client(url) as client:
            wanted = client.ask([], "What is it?", audio=SOUND, max_tokens=4, ignore_eos=True).text
        with sgl.RuntimeEndpoint(url) as endpoint:
            state = hear.run(sound, "What is it?", backend=endpoint)
            assert state["answer"] == wanted
            [turn, _] = state.messages()
            assert turn["content"][0]["type"] == "input_audio"
        path = tiny_qwen2_audio(tmp_path, seconds=3)
        with sgl.Engine(model_path=str(path), device="cpu") as engine:
            assert hear.run(sound, "What is it?", backend=engine)["answer"] == wanted

    def test_what_is_no_sound(self) -> None:
        with pytest.raises(UnsupportedAudio, match="data URI of a sound"):
            sgl.audio("data:audio/wav,abc")
        with pytest.raises(FileNotFoundError):
            sgl.audio("/no/such/file.wav")

    def test_the_package_of_sounds_does_not_hide_it(self) -> None:
        import mmserve.sounds.sound

        assert callable(sgl.audio)
        assert mmserve.sounds.sound.__name__ == "mmserve.sounds.sound"
