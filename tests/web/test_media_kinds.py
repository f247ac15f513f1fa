"""Which kinds of media a model takes: said by ``models.yaml`` and ``/v1/models``, and kept on every route."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import Limits
from mmserve.prompt import PromptBuilder
from mmserve.types import MediaKind
from tests.checkpoints import tiny_qwen2_audio, tiny_qwen2_vl
from tests.models.equality import resolve
from tests.sounds.made import encoded, sine
from tests.vision.clips import clip
from tests.web.fakes import FakeEngine, png
from web.app import create_app
from web.service import ServedModel, Service

pytestmark = pytest.mark.anyio
FILES: dict[MediaKind, bytes] = {
    "image": png(56, 56),
    "video": clip(1.0),
    "audio": encoded(sine(4_000, 16_000), 16_000),
}
NAMES = {"image": "picture", "video": "video", "audio": "sound"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {"sees": tiny_qwen2_vl(folder / "sees"), "hears": tiny_qwen2_audio(folder / "hears", seconds=1)}


def taking(path: Path, media: tuple[MediaKind, ...] | None) -> Checkpoint:
    """A checkpoint for which ``models.yaml`` says ``media``."""
    return replace(resolve(path), media=media)


@asynccontextmanager
async def asking(checkpoint: Checkpoint, engine: FakeEngine | None = None) -> AsyncIterator[httpx.AsyncClient]:
    prompts = PromptBuilder(checkpoint, Limits())
    model = ServedModel("tiny", media=prompts.layout.kinds)
    service = Service(model, prompts, engine or FakeEngine(), max_model_len=2048)
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


async def send(http: httpx.AsyncClient, route: str, kind: MediaKind) -> httpx.Response:
    encoded_ = base64.b64encode(FILES[kind]).decode()
    uri = f"data:;base64,{encoded_}"
    text = {"type": "text", "text": "What?"}
    part: dict[str, Any] = {"type": f"{kind}_url", f"{kind}_url": {"url": uri}}
    messages = [{"role": "user", "content": [part, text]}]
    if route == "/v1/vqa":
        return await http.post(route, files={kind: ("a", FILES[kind])}, data={"question": "What?"})
    if route == "/v1/responses":
        carried = {"image": uri, "video": uri, "audio": {"data": encoded_}}[kind]
        field = "input_audio" if kind == "audio" else f"{kind}_url"
        content = [{"type": f"input_{kind}", field: carried}, {"type": "input_text", "text": "What?"}]
        return await http.post(route, json={"input": [{"role": "user", "content": content}]})
    if route == "/v1/decisions":
        asked = [{"type": "continuation", "id": "a", "options": ["yes", "no"]}]
        return await http.post(route, json={"messages": messages, "questions": asked})
    return await http.post(route, json={"messages": messages})


ROUTES = ("/v1/vqa", "/v1/chat/completions", "/v1/responses", "/v1/decisions")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("family", "media", "refused", "says"),
    [
        ("sees", ("image",), ("video", "audio"), "takes pictures"),
        ("sees", ("video",), ("image", "audio"), "takes videos"),
        ("sees", None, ("audio",), "takes pictures and videos"),
        ("sees", (), ("image", "video", "audio"), "reads text only"),
        ("hears", None, ("image", "video"), "takes sounds"),
    ],
)
async def test_a_kind_that_the_model_does_not_take_is_a_clear_refusal(
    family: str,
    media: tuple[MediaKind, ...] | None,
    refused: tuple[MediaKind, ...],
    says: str,
    route: str,
    paths: dict[str, Path],
) -> None:
    engine = FakeEngine()
    async with asking(taking(paths[family], media), engine) as http:
        for kind in FILES:
            response = await send(http, route, kind)
            if kind not in refused:
                assert {item.kind for item in engine.requests[-1].prompt.media} == {kind}, response.text
                continue
            assert response.status_code == 400, (route, kind, response.text)
            error = response.json()["error"]
            assert error["code"] in ("unsupported_media", "unsupported_image")
            assert says in error["message"]
            assert NAMES[kind] in error["message"]
            assert error["param"]
        [model] = (await http.get("/v1/models")).json()["data"]
        assert set(model["media"]) == set(FILES) - set(refused)


async def test_captions_of_pictures_from_a_model_that_hears(paths: dict[str, Path]) -> None:
    async with asking(taking(paths["hears"], None)) as http:
        response = await http.post("/v1/captions", files={"image": ("a.png", FILES["image"])})
        assert "takes sounds, but no pictures" in response.text


@pytest.mark.parametrize(
    ("field", "told"), [("video_data", ("videos", "video_url")), ("audio_data", ("sounds", "input_audio"))]
)
async def test_generate_names_the_kind_that_it_does_not_take(
    field: str, told: tuple[str, str], paths: dict[str, Path]
) -> None:
    async with asking(resolve(paths["sees"])) as http:
        response = await http.post("/generate", json={"text": "What?", field: "AAAA"})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == field
        assert all(word in error["message"] for word in told)
