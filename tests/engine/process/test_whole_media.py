"""Videos and sounds reach an engine in a process of its own; what was decoded and encoded there is not so again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.process.client import ProcessEngineClient
from mmserve.engine.process.recipe import BuildEngine, Recipe
from mmserve.errors import CorruptAudio
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import AudioPart, MediaPart, Message, Prompt, Request, TextPart, VideoPart
from tests.checkpoints import tiny_qwen2_audio, tiny_qwen2_vl
from tests.models.equality import resolve
from tests.proofs.serving import serve
from tests.sounds.made import encoded, noise
from tests.vision.clips import clip, cut

pytestmark = pytest.mark.anyio
CONFIG = EngineConfig(device="cpu", kv_slots=2048)
GREEDY = SamplingParams(max_tokens=3, ignore_eos=True)


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[tuple[PromptBuilder, ProcessEngineClient]]:
    checkpoint = resolve(path)
    client = await ProcessEngineClient.start(Recipe(BuildEngine(checkpoint, CONFIG)))
    try:
        yield PromptBuilder(checkpoint, Limits()), client
    finally:
        await client.close()


def about(builder: PromptBuilder, part: MediaPart, question: str) -> Prompt:
    return builder.build([Message("user", (part, TextPart(question)))])


async def answer(client: ProcessEngineClient, name: str, prompt: Prompt) -> list[int]:
    events = [event async for event in client.generate(Request(name, prompt, GREEDY))]
    return [token for event in events for token in event.token_ids]


async def took(client: ProcessEngineClient, *prompts: Prompt) -> tuple[int, int]:
    """What these, asked together, had decoded and encoded in the engine."""
    before = client.stats()
    await asyncio.gather(*(answer(client, str(n), prompt) for n, prompt in enumerate(prompts)))
    after = client.stats()
    decoded, encoded = (int(after[name] - before[name]) for name in ("pictures_decoded", "pictures_encoded"))
    return decoded, encoded


async def test_a_video_is_asked_about_twice_and_then_a_longer_cut_of_it(tmp_path: Path) -> None:
    whole, path = clip(4.0), tiny_qwen2_vl(tmp_path / "model")
    async with served(path) as (builder, client):
        reader: Any = builder.layout.others["video"].read
        short = VideoPart(cut(whole, 3.0))
        first, second = about(builder, short, "What is this?"), about(builder, short, "Where?")
        assert await took(client, first, first) == (3, 3)
        assert await took(client, second) == (0, 0)
        assert reader.decoded == 1
        assert await took(client, about(builder, VideoPart(whole), "What is this?")) == (1, 1)
        engine = build_engine(resolve(path), CONFIG)
        try:
            [here] = serve(engine, [Request("a", first, GREEDY)]).values()
        finally:
            engine.close()
        assert await answer(client, "a", first) == here


async def test_a_sound_is_asked_about_twice(tmp_path: Path) -> None:
    async with served(tiny_qwen2_audio(tmp_path / "model", seconds=3)) as (builder, client):
        reader: Any = builder.layout.others["audio"].read
        for format_, passes in (("wav", 0), ("mp3", 1)):  # a WAV's header gives its length, which an MP3's does not
            sound = AudioPart(encoded(noise(20_001), 16_000, format_))
            first, second = about(builder, sound, "What is this?"), about(builder, sound, "Where?")
            assert await took(client, first, first) == (1, 1)
            assert await took(client, second) == (0, 0)
            assert reader.decoded == passes
        with pytest.raises(CorruptAudio, match="no numbers"):  # which only the engine finds out
            await answer(
                client, "a", about(builder, AudioPart(encoded(noise(9_000) * np.nan, 16_000, "wav-float")), "?")
            )
        assert await took(client, first) == (0, 0)
