"""Videos on the wire: the form's part, OpenAI's part, the Python client and the language, before the real prompts."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import mmserve as sgl
from mmserve.checkpoint import Checkpoint
from mmserve.client import AsyncClient, Client
from mmserve.client.videos import VideoFile, read_videos
from mmserve.config import Limits
from mmserve.errors import InvalidField, UnsupportedVideo, VideoTooLarge
from mmserve.lang.state import ProgramState
from mmserve.prompt import PromptBuilder
from mmserve.types import Request
from tests.lang.fakes import FakeBackend
from tests.vision.clips import clip
from tests.web.fakes import FakeEngine, png, serve, sse
from tests.web.test_vqa import error_of
from web.app import create_app
from web.service import ServedModel, Service

pytestmark = pytest.mark.anyio

LIMITS = Limits(max_video_bytes=200_000, max_videos=2, max_video_seconds=20.0)
CLIP = clip(2.0)


def uri(data: bytes = CLIP, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def asked() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def real(checkpoint: Checkpoint, asked: FakeEngine) -> Service:
    """The real prompt builder of a small Qwen2-VL, before an engine that says always the same."""
    prompts = PromptBuilder(checkpoint, LIMITS)
    return Service(ServedModel("tiny"), prompts, asked, max_model_len=2048, limits=LIMITS)


@pytest.fixture
async def http(real: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(real), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def parts(engine: FakeEngine) -> list[tuple[str, int]]:
    """The media of the last prompt: kinds and rows."""
    return [(item.kind, item.rows) for item in engine.requests[-1].prompt.media]


async def form(http: httpx.AsyncClient, *files: tuple[str, bytes], **fields: Any) -> httpx.Response:
    sent = [(name, (f"a.{name}", data, "application/octet-stream")) for name, data in files]
    return await http.post("/v1/vqa", files=sent, data={"question": "What happens?", **fields})


async def chat(http: httpx.AsyncClient, *content: dict[str, Any]) -> httpx.Response:
    text = {"type": "text", "text": "What happens?"}
    return await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [*content, text]}]})


async def test_a_form_may_have_videos_among_pictures(http: httpx.AsyncClient, asked: FakeEngine) -> None:
    response = await form(http, ("image", png(56, 56)), ("video", CLIP), ("image", png(28, 56)))
    assert response.status_code == 200, response.text
    assert parts(asked) == [("image", 4), ("video", 4), ("video", 4), ("image", 6)]
    answer = response.json()
    assert len(answer["images"]) == 2
    [video] = answer["videos"]
    assert video == {"width": 64, "height": 48, "duration": 2.0, "frames": [0.0, 0.5, 1.0, 1.5], "tokens": 8}
    assert answer["usage"]["prompt_tokens_details"]["video_tokens"] == 8
    assert "videos" not in (await form(http, ("image", png()))).json()


async def test_which_frames_is_said_in_the_form(http: httpx.AsyncClient) -> None:
    for fields, times in (
        ({"fps": "1"}, [0.0, 1.0]),
        ({"fps": "4", "max_frames": "3"}, [0.0, 0.75, 1.5]),
        ({"num_frames": "3"}, [0.0, 0.667, 1.333]),
    ):
        answer = (await form(http, ("video", CLIP), **fields)).json()
        assert answer["videos"][0]["frames"] == times


async def test_a_stream_ends_with_what_was_seen(http: httpx.AsyncClient) -> None:
    response = await form(http, ("video", CLIP), stream="true")
    assert sse(response.content)[-2]["videos"][0]["tokens"] == 8


@pytest.mark.parametrize(
    ("files", "fields", "status", "code", "param"),
    [
        ([("video", b"")], {}, 400, "unsupported_video", "video"),
        ([("video", b"no video")], {}, 400, "unsupported_video", "video"),
        ([("video", png())], {}, 400, "unsupported_video", "video"),
        ([("image", CLIP)], {}, 400, "unsupported_image", "image"),
        ([("image", png()), ("video", CLIP[:-900])], {}, 400, "corrupt_video", "video"),
        ([("video", clip(21.0))], {}, 400, "video_too_long", "video"),
        ([("video", CLIP + bytes(200_000))], {}, 413, "video_too_large", "video"),
        ([("video", CLIP)] * 3, {}, 400, "too_many_media", "video"),
        ([("video", CLIP)], {"fps": "0"}, 400, "invalid_field", "fps"),
        ([("video", CLIP)], {"fps": "fast"}, 400, "invalid_field", "fps"),
        ([("video", CLIP)], {"fps": "1", "num_frames": "2"}, 400, "invalid_field", "fps"),
        ([("video", CLIP)], {"num_frames": "9999"}, 400, "video_too_long", "video"),
        ([("movie", CLIP)], {}, 400, "invalid_field", "movie"),
        ([], {}, 400, "invalid_field", "image"),
    ],
)
async def test_forms_that_are_refused(
    files: list[tuple[str, bytes]],
    fields: dict[str, str],
    status: int,
    code: str,
    param: str,
    http: httpx.AsyncClient,
    asked: FakeEngine,
) -> None:
    error_of(await form(http, *files, **fields), status, code, param)
    assert not asked.requests
    assert (await form(http, ("video", CLIP))).status_code == 200


async def test_a_video_that_came_as_text_is_told_how_to_come(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/vqa", data={"question": "?", "video": "a.mp4"}, files=[("image", png())])
    assert "mind the" in error_of(response, 400, "invalid_field", "video")


async def test_a_model_that_takes_no_videos_says_what_it_takes(checkpoint: Checkpoint) -> None:
    prompts = PromptBuilder(replace(checkpoint, media=("image",)), LIMITS)
    service = Service(ServedModel("tiny"), prompts, FakeEngine(), max_model_len=2048, limits=LIMITS)
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        said = error_of(await form(http, ("video", CLIP)), 400, "unsupported_media", "video")
        assert "takes pictures, but no videos" in said
        where = "messages[0].content[0]"
        error_of(await chat(http, {"type": "video_url", "video_url": uri()}), 400, "unsupported_media", where)


async def test_openais_part_carries_one(http: httpx.AsyncClient, asked: FakeEngine) -> None:
    picture = {"type": "image_url", "image_url": {"url": uri(png(56, 56), "image/png")}}
    response = await chat(http, {"type": "video_url", "video_url": {"url": uri(), "num_frames": 2}}, picture)
    assert response.status_code == 200, response.text
    assert parts(asked) == [("video", 4), ("image", 4)]
    assert response.json()["videos"][0]["frames"] == [0.0, 1.0]
    assert (await chat(http, {"type": "video_url", "video_url": uri()})).status_code == 200
    assert parts(asked) == [("video", 4), ("video", 4)]


@pytest.mark.parametrize(
    ("video", "status", "code"),
    [
        ({"url": uri(png(), "image/png")}, 400, "unsupported_video"),
        ({"url": uri(b"")}, 400, "unsupported_video"),
        ({"url": uri(bytes(200_001))}, 413, "video_too_large"),
        ({"url": "https://example.com/a.mp4"}, 400, "invalid_field"),
        ({"url": "file:///etc/passwd"}, 400, "invalid_field"),
    ],
)
async def test_parts_that_are_refused(video: dict[str, Any], status: int, code: str, http: httpx.AsyncClient) -> None:
    response = await chat(http, {"type": "video_url", "video_url": video})
    error_of(response, status, code, "messages[0].content[0].video_url")


async def test_wishes_and_counts_of_parts_are_judged(http: httpx.AsyncClient) -> None:
    part = {"type": "video_url", "video_url": {"url": uri(), "fps": -1}}
    error_of(await chat(http, part), 400, "invalid_field", "messages[0].content[0].video_url.fps")
    several = [{"type": "video_url", "video_url": {"url": uri()}}] * 3
    error_of(await chat(http, *several), 400, "too_many_media", "messages[0].content[2].video_url")


def test_the_clients_ask_about_videos(real: Service, asked: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(CLIP)
    with serve(real) as url, Client(url) as client:
        answer = client.ask(None, "What happens?", video=tmp_path / "a.mp4", num_frames=2)
        assert (answer.videos[0].frames, answer.usage.video_tokens) == ((0.0, 1.0), 4)
        client.ask(png(56, 56), "What happens?", video=[CLIP, io.BytesIO(CLIP)], max_frames=2)
        assert parts(asked) == [("image", 4), ("video", 4), ("video", 4)]
        stream = client.stream([], "What happens?", video=CLIP)
        assert "".join(stream)
        assert stream.answer.videos[0].duration == 2.0
        with pytest.raises(UnsupportedVideo) as caught:
            client.ask(None, "What happens?", video=b"nothing")
        assert caught.value.param == "video"
        with pytest.raises(VideoTooLarge):
            client.ask(None, "What happens?", video=bytes(200_001))
        with pytest.raises(InvalidField, match="at least one picture"):
            client.ask(None, "What happens?")
        with pytest.raises(InvalidField, match="part of a message"):
            client.chat([{"role": "user", "content": "What happens?"}], video=CLIP)
        said = {"type": "video_url", "video_url": {"url": VideoFile("a", CLIP).data_uri}}
        assert client.chat([{"role": "user", "content": [said, "What happens?"]}]).usage.video_tokens == 8


async def test_the_asynchronous_client_too(real: Service) -> None:
    with serve(real) as url:
        async with AsyncClient(url) as client:
            assert (await client.ask(None, "What happens?", video=CLIP)).usage.video_tokens == 8


def test_what_is_no_video_is_a_type_error() -> None:
    assert read_videos(None) == ()
    with pytest.raises(TypeError, match="a video is a path"):
        read_videos(np.zeros((2, 2)))  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        read_videos("nowhere.mp4")
    kinds = [VideoFile("", clip(0.5, container=container)).media_type for container in ("mp4", "webm", "avi")]
    assert kinds == ["video/mp4", "video/webm", "video/x-msvideo"]


@sgl.function
def watch(s: ProgramState, /, **wish: Any) -> None:
    s += sgl.user(sgl.video(CLIP, **wish) + "What happens?")
    s += sgl.assistant(sgl.gen("answer"))


def shown(request: Request) -> int:
    return len(request.prompt.media)


def test_the_language_sends_them_to_a_server(real: Service, asked: FakeEngine) -> None:
    with serve(real) as url:
        state = watch.run(num_frames=2, backend=sgl.RuntimeEndpoint(url))
        assert state["answer"]
        assert shown(asked.requests[-1]) == 1
        watch.run(backend=sgl.RuntimeEndpoint(url))["answer"]
        assert shown(asked.requests[-1]) == 2


def test_the_language_judges_numbers_where_they_stand() -> None:
    with pytest.raises(InvalidField):
        sgl.video(CLIP, 0)
    with pytest.raises(FileNotFoundError):
        sgl.video("nowhere.mp4")
    state = watch.run(fps=1.0, backend=FakeBackend())
    [message] = [each for each in state.messages() if each["role"] == "user"]
    assert message["content"][0] == {"type": "video_url", "video_url": {"url": uri(), "fps": 1.0}}
