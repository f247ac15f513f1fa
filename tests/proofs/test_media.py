"""What videos and sounds cost when they are asked about again, and 5,000 damaged ones through the whole application: no
server error, no crash, nothing that grows. The small forms are ``tests/engine/process/test_whole_media.py`` and
``tests/web/test_media_fuzz.py``."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from mmserve.config import Limits
from mmserve.engine.build import build_engine
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import AudioPart, MediaKind, MediaPart, Message, Request, TextPart, VideoPart
from tests.checkpoints import tiny_qwen2_audio, tiny_qwen2_vl
from tests.checkpoints.qwen_vl import tiny_qwen_vl
from tests.models.equality import ROOMY, resolve
from tests.proofs.serving import serve
from tests.sounds.made import chirp, encoded
from tests.vision.clips import clip, cut
from tests.web.fuzzing import Held, Outcomes
from tests.web.media_fuzzing import WHOLE_EVERY, fuzz_media
from tests.web.test_media_fuzz import KINDS, make, serving

pytestmark = [pytest.mark.proof, pytest.mark.timeout(4 * 3600)]

ROUND, ROUNDS = 250, 12
WARM = 5
"""Rounds after which caches are full, imports are made, and the allocator has what it needs."""

SLACK = 24 << 20
"""Bytes by which resident memory may still move: allocators keep what they freed."""


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_answered_and_nothing_grows(
    kind: MediaKind, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcomes, held = Outcomes(), []
    with serving(make(kind, tmp_path_factory.mktemp("model") / kind)) as service:
        for number in range(ROUNDS):
            asyncio.run(fuzz_media(service, kind, ROUND, 100 + number, outcomes))
            held.append(Held.now(tmp_path))
            print(
                f"{kind} {sum(outcomes.statuses.values()):5} damaged files: {held[-1].memory >> 20} MiB resident, "
                f"{held[-1].descriptors} open files, {held[-1].temporary} temporary files",
                flush=True,
            )
    print(f"{kind} statuses {dict(sorted(outcomes.statuses.items()))}")
    print(f"{kind} reasons  {dict(outcomes.codes.most_common())}")
    assert sum(outcomes.statuses.values()) == ROUNDS * (ROUND - ROUND // WHOLE_EVERY)
    warm = held[WARM:]
    # File descriptors of the event loop of each round are counted too, and are as many every time.
    assert {each.descriptors for each in warm} == {held[WARM].descriptors}
    assert {each.temporary for each in held} == {0}
    half = len(warm) // 2
    first, second = (max(each.memory for each in part) for part in (warm[:half], warm[half:]))
    print(f"{kind} growth   {(second - first) / 2**20:.1f} MiB from the first half after warming up to the second")
    assert second <= first + SLACK, (first, second)


def questions(family: str) -> list[tuple[str, MediaPart, str]]:
    """What is asked, in order, with the name of the case."""
    if family == "qwen2_audio":
        sound = AudioPart(encoded(chirp(40_000, 16_000), 16_000, "mp3"))
        return [("first question", sound, "What is this?"), ("second question", sound, "Who speaks?")]
    whole = clip(6.0)
    five, six = VideoPart(cut(whole, 5.0)), VideoPart(cut(whole, 6.0))
    return [
        ("first question", five, "What is this?"),
        ("second question", five, "Where is it?"),
        ("one second more", six, "Where is it?"),
    ]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2.5-vl", "qwen2_audio"])
def test_what_is_asked_about_again_is_neither_decoded_nor_encoded(family: str, tmp_path: Path) -> None:
    folder = tmp_path / family
    if family == "qwen2_audio":
        path = tiny_qwen2_audio(folder, seconds=3)
    else:
        path = tiny_qwen2_vl(folder) if family == "qwen2_vl" else tiny_qwen_vl(folder, family)
    checkpoint = resolve(path)
    builder, engine = PromptBuilder(checkpoint, Limits()), build_engine(checkpoint, ROOMY)
    reader, took = builder.layout.others["audio" if family == "qwen2_audio" else "video"].read, []
    names = ("pictures_decoded", "pictures_encoded", "cached_tokens")
    try:
        for name, part, question in questions(family):
            measured, before = reader.decoded, engine.stats()  # type: ignore[attr-defined]
            prompt = builder.build([Message("user", (part, TextPart(question)))])
            serve(engine, [Request("a", prompt, SamplingParams(max_tokens=2, ignore_eos=True))])
            counts = [int(engine.stats()[each] - before[each]) for each in names]
            took.append((reader.decoded - measured, *counts[:2]))  # type: ignore[attr-defined]
            print(
                f"{family}, {name}: {took[-1][0]} files decoded for the prompt, {counts[0]} items decoded and "
                f"{counts[1]} encoded of {len(prompt.media)}, {counts[2]} of {len(prompt)} tokens cached"
            )
    finally:
        engine.close()
    items = 1 if family == "qwen2_audio" else 5
    assert took[:2] == [(1, items, items), (0, 0, 0)]
    assert took[2:] in ([], [(1, 1, 1)])
