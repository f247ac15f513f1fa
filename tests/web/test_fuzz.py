"""Damaged pictures and forms: every one gets an answer or a reason, and nothing is left behind (full size:
``tests/proofs/test_fuzz.py``)."""

from __future__ import annotations

import asyncio
import io
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from tests.web.fuzzing import Held, Outcomes, fuzz
from tests.web.mutations import damaged_form, damaged_picture, originals, png_chunks, png_of
from web.service import ServedModel, Service

CASES = 300


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The embedded model, with so little room for caches that they are full at once."""
    checkpoint = load_registry().resolve("pocket-vl", offline=True)
    config = EngineConfig(device="cpu", kv_slots=4096, encoder_cache_bytes=1 << 20, check_invariants=True)
    engine = LocalEngineClient(build_engine(checkpoint, config))
    limits = Limits(max_kept_bytes=1 << 20, max_picture_pixels=4_000_000)
    yield Service(ServedModel("pocket-vl"), PromptBuilder(checkpoint, limits), engine, checkpoint.max_model_len, limits)
    asyncio.run(engine.close())


def test_the_originals_are_pictures_and_damage_is_repeatable() -> None:
    files = originals()
    for data in files:
        Image.open(io.BytesIO(data)).load()
        if data.startswith(b"\x89PNG"):
            assert png_of(png_chunks(data)) == data
    first, again = (
        [(damaged_picture(files, chance), damaged_form(files, chance)) for _ in range(50)]
        for chance in (random.Random(5), random.Random(5))
    )
    assert first == again
    assert sum(picture in files for picture, _ in first) < 5


def test_damage_is_answered_and_leaves_nothing_behind(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcomes = Outcomes()
    asyncio.run(fuzz(service, 60, 1, outcomes))
    before = Held.now(tmp_path)
    asyncio.run(fuzz(service, CASES, 2, outcomes))
    after = Held.now(tmp_path)
    assert after.descriptors == before.descriptors
    assert after.temporary == before.temporary == 0
    assert min(outcomes.statuses[200], outcomes.statuses[400]) > CASES // 10, outcomes
    assert {"corrupt_image", "unsupported_image", "invalid_field"} <= set(outcomes.codes)
