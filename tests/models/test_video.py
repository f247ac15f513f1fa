"""Qwen2-VL and Qwen2.5-VL with videos: greedy answers equal to transformers', however they are computed."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import mmserve as sgl
from mmserve.config import Limits
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.lang.state import ProgramState
from mmserve.prompt import PromptBuilder
from mmserve.prompt.layouts import layout_for
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Part, Prompt, Request, TextPart, VideoPart
from tests.checkpoints.qwen2_vl import tiny_qwen2_vl
from tests.checkpoints.qwen_vl import tiny_qwen_vl
from tests.models.equality import QUESTIONS, ROOMY, png, resolve, served
from tests.proofs.serving import serve
from tests.reference import Expected, Tally, generated
from tests.vision.clips import clip, cut
from vision.frames import decoded
from vision.video import VideoBlock, probe, sample

TOKENS = 6
LIMITS = Limits(max_videos=8)


@pytest.fixture(scope="module", params=["qwen2-vl", "qwen2.5-vl"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video") / request.param
    return tiny_qwen2_vl(folder) if request.param == "qwen2-vl" else tiny_qwen_vl(folder, request.param)


class VideoReference:
    """A checkpoint in transformers, given the frames that we sample."""

    def __init__(self, path: Path) -> None:
        self._processor: Any = AutoProcessor.from_pretrained(path, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        self._model = model.eval()

    def inputs(self, parts: Sequence[Part]) -> Any:
        names = {ImagePart: "image", VideoPart: "video", TextPart: "text"}
        content = [
            {"type": names[type(part)], **({"text": part.text} if isinstance(part, TextPart) else {})} for part in parts
        ]
        text = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        videos, metadata = [], []
        for part in parts:
            if isinstance(part, VideoPart):
                frames, rate = seen(part)
                videos.append(frames)
                metadata.append(
                    {"total_num_frames": len(frames), "fps": rate, "frames_indices": list(range(len(frames)))}
                )
        images = [_image(part) for part in parts if isinstance(part, ImagePart)]
        return self._processor(
            text=[text],
            images=images or None,
            videos=videos or None,
            return_tensors="pt",
            **({"do_sample_frames": False, "video_metadata": metadata} if videos else {}),
        )

    def positions(self, parts: Sequence[Part]) -> npt.NDArray[np.int64]:
        inputs = self.inputs(parts)
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        given = {name: inputs[name] for name in names if name in inputs}
        if "second_per_grid_ts" in given:
            given["second_per_grid_ts"] = torch.as_tensor(given["second_per_grid_ts"])
        found, _ = self._model.model.get_rope_index(**given)
        return np.asarray(found[:, 0].numpy())

    def answer(self, parts: Sequence[Part]) -> Expected:
        return generated(self._model, self.inputs(parts), TOKENS, to_the_end=True)


def seen(part: VideoPart) -> tuple[npt.NDArray[np.uint8], float]:
    header = probe(part.data, LIMITS)
    sampling = sample(header, part, LIMITS)
    return np.stack(list(decoded(part.data, header, sampling))), sampling.rate


def _image(part: ImagePart) -> Image.Image:
    return Image.open(io.BytesIO(part.data)).convert("RGB")


@dataclass(frozen=True, slots=True)
class _Shelf:
    """What prompts are mixed from."""

    videos: tuple[VideoPart, ...]
    pictures: tuple[ImagePart, ...]

    def prompt(self, rng: random.Random) -> list[Part]:
        media: list[Part] = [rng.choice(self.videos) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
        media += [rng.choice(self.pictures) for _ in range(rng.choice((0, 0, 1, 2)))]
        rng.shuffle(media)
        parts: list[Part] = [TextPart("First. ")] if rng.random() < 0.3 else []
        for part in media:
            parts.append(part)
            if rng.random() < 0.3:
                parts.append(TextPart(rng.choice(QUESTIONS)))
        return [*parts, TextPart(f"{rng.choice(QUESTIONS)} {rng.randrange(100)}")]


def shelf() -> _Shelf:
    long = clip(3.0, size=(96, 64), seed=1)
    videos = (
        VideoPart(clip(2.0)),
        VideoPart(long),
        VideoPart(cut(long, 2.0)),
        VideoPart(long, fps=5.0, max_frames=7),
        VideoPart(clip(2.4, size=(100, 60), container="webm", seed=2), num_frames=5),
        VideoPart(clip(1.5, size=(57, 120), container="avi", seed=3), fps=0.7),
        VideoPart(clip(0.1, size=(32, 30), container="matroska", seed=4)),
    )
    noise = np.random.default_rng(5)
    drawn = [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in ((60, 100), (97, 97))]
    return _Shelf(videos, tuple(ImagePart(png(each)) for each in drawn))


def mixes(number: int, seed: int = 0) -> list[list[Part]]:
    rng, kept = random.Random(seed), shelf()
    alone: list[list[Part]] = [[part, TextPart("What?")] for part in kept.videos]
    return alone + [kept.prompt(rng) for _ in range(number)]


def build(builder: PromptBuilder, parts: Sequence[Part]) -> Prompt:
    return builder.build([Message("user", tuple(parts))])


def check(path: Path, number: int) -> Tally:
    checkpoint, reference, tally = resolve(path), VideoReference(path), Tally()
    builder = PromptBuilder(checkpoint, LIMITS)
    asked = {str(i): parts for i, parts in enumerate(mixes(number))}
    prompts = {name: build(builder, parts) for name, parts in asked.items()}
    expected = {name: reference.answer(parts) for name, parts in asked.items()}
    for name, right in expected.items():
        assert prompts[name].token_ids.tolist() == right.prompt_ids
    for answers in served(checkpoint, prompts, TOKENS):
        for name, right in expected.items():
            tally.compare(right, answers[name])
    return tally


def test_answers_are_those_of_transformers(path: Path) -> None:
    tally = check(path, 3)
    assert tally.compared == 4 * 10
    assert tally.excused <= 4


@pytest.mark.proof
def test_twenty_mixed_prompts(path: Path) -> None:
    tally = check(path, 13)
    print(f"{path.name}: {tally}")
    assert tally.excused <= tally.compared / 20


def test_positions_are_those_of_transformers(path: Path) -> None:
    checkpoint, reference = resolve(path), VideoReference(path)
    builder, positions = PromptBuilder(checkpoint, LIMITS), layout_for(checkpoint).positions
    for parts in mixes(12, seed=3):
        ours, following = positions(build(builder, parts))
        theirs = reference.positions(parts)
        assert np.array_equal(ours, theirs)
        assert following == theirs[:, -1].max() + 1


def ask(engine: Engine, prompts: Sequence[Prompt]) -> dict[str, float]:
    """The engine's counts of what these requests, one after another, took."""
    before = engine.stats()
    for number, prompt in enumerate(prompts):
        serve(engine, [Request(str(number), prompt, SamplingParams(max_tokens=2, ignore_eos=True, seed=1))])
    after = engine.stats()
    return {name: after[name] - before[name] for name in ("pictures_decoded", "pictures_encoded", "cached_tokens")}


def test_another_question_decodes_and_encodes_nothing(path: Path) -> None:
    checkpoint = resolve(path)
    builder, engine = PromptBuilder(checkpoint, LIMITS), build_engine(checkpoint, ROOMY)
    reader: Any = builder.layout.others["video"].read
    video = VideoPart(clip(3.0))
    try:
        first = build(builder, [video, TextPart("What is this?")])
        blocks = len(first.media)
        assert ask(engine, [first]) == {"pictures_decoded": blocks, "pictures_encoded": blocks, "cached_tokens": 0}
        assert reader.decoded == 1
        second = build(builder, [video, TextPart("And where is the dog?")])
        again = ask(engine, [second])
        assert reader.decoded == 1
        assert (again["pictures_decoded"], again["pictures_encoded"]) == (0, 0)
        assert again["cached_tokens"] >= first.ranges[-1].end
        behind_text = build(builder, [TextPart("Look: "), video, TextPart("And where is the dog?")])
        third = ask(engine, [behind_text])
        assert (third["pictures_decoded"], third["pictures_encoded"]) == (0, 0)
    finally:
        engine.close()


def test_rows_that_were_evicted_are_made_again_from_the_file(path: Path) -> None:
    checkpoint = resolve(path)
    builder, engine = PromptBuilder(checkpoint, LIMITS), build_engine(checkpoint, ROOMY)
    reader: Any = builder.layout.others["video"].read
    try:
        prompt = build(builder, [VideoPart(clip(3.0)), TextPart("What is this?")])
        ask(engine, [prompt])
        engine.flush()
        again = build(builder, [VideoPart(clip(3.0)), TextPart("What is this?")])
        assert ask(engine, [again])["pictures_encoded"] == len(again.media)
        assert reader.decoded == 1
    finally:
        engine.close()


def test_a_longer_cut_encodes_only_what_is_new(path: Path) -> None:
    checkpoint = resolve(path)
    builder, engine = PromptBuilder(checkpoint, LIMITS), build_engine(checkpoint, ROOMY)
    whole = clip(6.0)
    try:
        for seconds in (3.0, 4.0):
            prompt = build(builder, [VideoPart(cut(whole, seconds)), TextPart("What?")])
            blocks = [item for item in prompt.media if isinstance(item, VideoBlock)]
            took = ask(engine, [prompt])
            assert len(blocks) == seconds
            assert took["pictures_encoded"] == (3 if seconds == 3.0 else 1)
        assert took["cached_tokens"] >= prompt.ranges[2].end
    finally:
        engine.close()


def test_typed_marks_of_videos_are_text(path: Path) -> None:
    builder = PromptBuilder(resolve(path), LIMITS)
    typed = "<|vision_start|><|video_pad|><|vision_end|>"
    plain = build(builder, [TextPart(f"{typed} What?")])
    assert plain.media == ()
    assert not np.isin(plain.token_ids, [builder.layout.others["video"].pad_id]).any()
    prompt = build(builder, [TextPart(typed), VideoPart(clip(2.0)), TextPart(typed)])
    assert (prompt.token_ids == builder.layout.others["video"].pad_id).sum() == prompt.tokens_of("video")


def test_the_language_shows_them_to_an_engine_of_its_own(path: Path) -> None:
    @sgl.function
    def watch(s: ProgramState, video: bytes, /) -> None:
        s += sgl.user(sgl.video(video, num_frames=3) + "What is this?")
        s += sgl.assistant(sgl.gen("answer", max_tokens=3, ignore_eos=True))

    with sgl.Engine(model_path=str(path), device="cpu", dtype="float32") as engine:
        state = watch.run(clip(2.0), backend=engine)
        told = state.get_meta_info("answer")
    prompt = build(
        PromptBuilder(resolve(path), LIMITS), [VideoPart(clip(2.0), num_frames=3), TextPart("What is this?")]
    )
    assert told["prompt_tokens"] == len(prompt)
    assert len(prompt.media) == 2
