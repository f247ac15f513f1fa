"""Damaged videos and sounds: every one gets an answer or a reason, and nobody else notices (full size:
``tests/proofs/test_media.py``)."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from mmserve.types import MediaKind
from tests.checkpoints import tiny_qwen2_audio, tiny_qwen2_vl
from tests.models.equality import resolve
from tests.web.fuzzing import Held, Outcomes
from tests.web.media_fuzzing import damaged, fuzz_media, originals
from web.service import ServedModel, Service

KINDS: tuple[MediaKind, ...] = ("video", "audio")
REFUSED = {"video": {"corrupt_video", "unsupported_video"}, "audio": {"corrupt_audio", "unsupported_audio"}}


def make(kind: MediaKind, folder: Path) -> Path:
    return tiny_qwen2_vl(folder) if kind == "video" else tiny_qwen2_audio(folder, seconds=1)


@contextmanager
def serving(path: Path) -> Iterator[Service]:
    """A small model with so little room for caches that they are full at once."""
    checkpoint = resolve(path)
    config = EngineConfig(device="cpu", kv_slots=1024, encoder_cache_bytes=1 << 18, check_invariants=True)
    engine = LocalEngineClient(build_engine(checkpoint, config))
    limits = Limits(max_video_seconds=60, max_sound_seconds=60)
    yield Service(ServedModel("tiny"), PromptBuilder(checkpoint, limits), engine, checkpoint.max_model_len, limits)
    asyncio.run(engine.close())


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_repeatable(kind: MediaKind) -> None:
    files = originals(kind)
    first, again = ([damaged(files, chance) for _ in range(30)] for chance in (random.Random(3), random.Random(3)))
    assert first == again
    assert sum(data in files for data in first) < 5


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_answered_and_leaves_nothing_behind(
    kind: MediaKind, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcomes = Outcomes()
    with serving(make(kind, tmp_path_factory.mktemp("model") / kind)) as service:
        asyncio.run(fuzz_media(service, kind, 30, 1, outcomes))
        before = Held.now(tmp_path)
        asyncio.run(fuzz_media(service, kind, 90, 2, outcomes))
        after = Held.now(tmp_path)
    assert (after.descriptors, after.temporary) == (before.descriptors, 0)
    assert min(outcomes.statuses[200], outcomes.statuses[400]) > 5, outcomes
    assert REFUSED[kind] <= set(outcomes.codes)
