"""Questions made to be mistaken for one another, asked in one engine and answered as by engines that saw nothing else.

Each group of ``tests.proofs.traps`` is asked one by one in several orders, and all at once. Answers are held against
cold engines', token for token, with the log-probabilities of the twenty best tokens at every step as the witness of the
logits. The small form runs with the tests; more questions, orders and engines with ``make proof``.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import random
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from mmserve.checkpoint import Checkpoint, read_checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.engine.local import LocalEngineClient
from mmserve.errors import CorruptPicture
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import ContentHash, Grid, Picture, Prompt, Request
from tests.proofs import traps
from tests.proofs.answers import TOLERANCE, Answer, ask, distance, furthest, parted_at
from tests.proofs.traps import Conversation, Trap, conversation, drawing, opened, shape
from tests.reference import NEAR_TIE
from tests.vision.files import encode, with_orientation
from vision.decode import decode
from vision.pixels import QwenPixels
from web.app import create_app
from web.service import ServedModel, Service

CONFIG = EngineConfig(device="cpu", dtype="float32", kv_slots=4096, check_invariants=True)
COLD = dataclasses.replace(CONFIG, reuse=False, encoder_cache_bytes=0)
SAMPLING = SamplingParams(max_tokens=4, seed=0, logprobs=20)
QUESTIONS = ("What is this?", "is there a red shape?", "Describe the picture.", "what color is the shape?")
TRAPS = (*traps.PICTURE_TRAPS, *traps.PROMPT_TRAPS)
DIFFERENT = 100 * TOLERANCE
"""Cold answers of a trap lie this far apart at their first token, or falling into it would not show."""


class Cold:
    """Answers of engines that see one request and end; each conversation is asked once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.prompts = PromptBuilder(checkpoint, Limits())
        self._answers: dict[Conversation, Answer] = {}

    def request(self, asked: Conversation, name: str = "cold") -> Request:
        return Request(name, self.prompts.build(asked), SAMPLING)

    def __call__(self, asked: Conversation) -> Answer:
        if asked not in self._answers:
            engine = build_engine(self._checkpoint, COLD)
            self._answers[asked] = ask(engine, [self.request(asked)])["cold"]
            engine.close()
        return self._answers[asked]


@pytest.fixture(scope="module")
def cold(pocket_vl: Checkpoint) -> Cold:
    return Cold(pocket_vl)


@pytest.fixture
def engine(pocket_vl: Checkpoint) -> Iterator[Engine]:
    engine = build_engine(pocket_vl, CONFIG)
    yield engine
    engine.close()


def agree(want: Answer, got: Answer) -> float:
    """How far two answers' logits lie apart. Raises ``AssertionError`` where that, or a token, is no rounding."""
    apart = furthest(want, got)
    assert apart <= TOLERANCE, f"the logits lie {apart} apart"
    at = parted_at(want, got)
    if at is not None:
        best, second = (value for _, _, value in want.steps[at].top[:2])
        assert best - second < NEAR_TIE, f"token {at} differs"
        print(f"excused: the two best logits lie {best - second:.1e} apart")
    return apart


def assert_different(answers: Iterable[Answer]) -> None:
    for one, other in itertools.combinations(answers, 2):
        assert distance(one.steps[0], other.steps[0]) > DIFFERENT, "this trap could be fallen into unnoticed"


def assert_each_as_cold(engine: Engine, cold: Cold, batches: Iterable[Sequence[Conversation]]) -> float:
    """Ask the batches one after another; returns how far the furthest answer lies from a cold engine's."""
    apart = 0.0
    for batch in batches:
        answers = ask(engine, [cold.request(asked, str(i)) for i, asked in enumerate(batch)])
        for i, asked in enumerate(batch):
            apart = max(apart, agree(cold(asked), answers[str(i)]))
    return apart


def one_by_one(group: Sequence[Conversation]) -> list[list[Conversation]]:
    return [[asked] for asked in group]


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_a_trap_asked_in_one_engine_in_both_orders_and_at_once(pocket_vl: Checkpoint, cold: Cold, trap: Trap) -> None:
    group = trap(QUESTIONS[0])
    assert_different(map(cold, group))
    contents = {p.content for asked in group for p in cold.request(asked).prompt.pictures}
    apart = 0.0
    for batches in (one_by_one(group), one_by_one(group[::-1]), [group]):
        engine = build_engine(pocket_vl, CONFIG)
        apart = max(apart, assert_each_as_cold(engine, cold, batches))
        assert engine.stats()["pictures_encoded"] == len(contents)
        engine.close()
    print(f"{trap.__name__}: {len(group)} questions, logits at most {apart:.1e} from a cold engine's")


@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"step_tokens": 7},
        {"encoder_cache_bytes": 0},
        {"kv_slots": 500, "max_running": 3},
        {"kv_slots": 500, "step_tokens": 16, "encoder_cache_bytes": 40_000, "encode_patches": 64},
    ],
    ids=["roomy", "chunked", "no encoder cache", "few slots", "little of everything"],
)
def test_every_trap_in_one_engine_in_random_orders(pocket_vl: Checkpoint, cold: Cold, changes: dict[str, int]) -> None:
    """All groups under four questions in the same engine, so that each trap also meets the others' pictures."""
    everything = [asked for question in QUESTIONS for trap in TRAPS for asked in trap(question)]
    rng = random.Random(0)
    orders = [rng.sample(everything, len(everything)) for _ in range(2)]
    engine = build_engine(pocket_vl, dataclasses.replace(CONFIG, **changes))  # type: ignore[arg-type]
    apart = assert_each_as_cold(engine, cold, [*one_by_one(orders[0]), orders[1]])
    stats = engine.stats()
    engine.close()
    print(
        f"{changes}: {2 * len(everything)} answers, logits at most {apart:.1e} from a cold engine's; "
        f"{stats['cached_tokens']:.0f} tokens cached, {stats['evicted_tokens']:.0f} evicted"
    )


# -- the traps hold what they promise ---------------------------------------------------------------------------


def test_the_equal_patches_are_equal_and_the_grids_are_not(pocket_vl: Checkpoint, cold: Cold) -> None:
    pixels = QwenPixels(pocket_vl.path, cold.prompts.geometry)  # type: ignore[arg-type]
    for trap, grids in (
        (traps.PICTURE_TRAPS[0], [Grid(1, 4, 16), Grid(1, 8, 8), Grid(1, 16, 4)]),
        (traps.PICTURE_TRAPS[1], [Grid(1, 4, 18), Grid(1, 6, 12)]),
    ):
        pictures = [cold.request(asked).prompt.pictures[0] for asked in trap("What?")]
        assert [picture.grid for picture in pictures] == grids
        assert len({patches_alone(picture, pixels) for picture in pictures}) == 1


def patches_alone(picture: Picture, pixels: QwenPixels) -> bytes:
    return pixels(decode(picture.data, picture.header), picture.grid).values.numpy().tobytes()


def samples_alone(picture: Picture, _: QwenPixels) -> bytes:
    """Not turned, and without mode, palette and transparency."""
    return opened(picture.data).tobytes()


def colours_alone(picture: Picture, _: QwenPixels) -> bytes:
    return opened(picture.data).convert("RGB").tobytes()


def length_and_beginning(picture: Picture, _: QwenPixels) -> bytes:
    return len(picture.data).to_bytes(8, "little") + picture.data[:4096]


def grid_alone(picture: Picture, _: QwenPixels) -> bytes:
    return bytes(picture.grid)


@pytest.mark.parametrize(
    ("mistake", "trap"),
    [
        (patches_alone, traps.white_pictures_whose_patches_are_equal_and_whose_grids_are_not),
        (patches_alone, traps.the_same_tiles_two_by_three_and_three_by_two),
        (colours_alone, traps.the_same_colours_under_another_transparency),
        (samples_alone, traps.the_same_indices_under_another_palette),
        (samples_alone, traps.a_jpeg_turned_by_its_exif),
        (samples_alone, traps.a_png_turned_by_its_exif_chunk),
        (length_and_beginning, traps.files_of_equal_length_that_differ_at_their_end_only),
        (grid_alone, traps.one_drawing_in_colour_in_grey_and_in_black_and_white),
        (grid_alone, traps.the_same_pictures_in_another_order),
    ],
    ids=lambda value: value.__name__,
)
def test_an_identity_that_leaves_something_out_falls_into_the_trap(
    engine: Engine, pocket_vl: Checkpoint, cold: Cold, mistake: Callable[[Picture, QwenPixels], bytes], trap: Trap
) -> None:
    """What the other tests would see if the engine made this mistake."""
    pixels = QwenPixels(pocket_vl.path, cold.prompts.geometry)  # type: ignore[arg-type]
    group = trap(QUESTIONS[0])
    apart = 0.0
    for i, asked in enumerate(group):
        right = cold.request(asked, str(i))
        pictures = tuple(
            dataclasses.replace(p, content=ContentHash(hashlib.sha256(mistake(p, pixels)).digest()))
            for p in right.prompt.pictures
        )
        prompt = Prompt(right.prompt.token_ids, pictures, right.prompt.ranges)
        answer = ask(engine, [Request(right.id, prompt, right.sampling)])[right.id]
        apart = max(apart, distance(cold(asked).steps[0], answer.steps[0]))
    assert apart > DIFFERENT


# -- what looks different and is not, and what is only words ----------------------------------------------------


def test_other_files_of_equal_pixels_are_told_apart_and_answered_alike(engine: Engine, cold: Cold) -> None:
    """Upright by EXIF or by its pixels; of 16 bits or of their high bytes; with or without a palette."""
    image, grey = drawing(168, 112), drawing().convert("L")
    turned = with_orientation(image.transpose(traps.TURN_BACK_6), "PNG", 6)
    deep = grey.convert("I").point(lambda sample: sample * 256 + 7)
    for one, other in [
        (encode(image, "PNG"), turned),
        (encode(image, "PNG"), encode(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")),
        (encode(grey, "PNG"), encode(deep.convert("I;16"), "PNG")),
        (encode(image, "PNG"), encode(image, "BMP")),
    ]:
        before = engine.stats()["pictures_encoded"]
        pair = [conversation(one, QUESTIONS[0]), conversation(other, QUESTIONS[0])]
        assert_each_as_cold(engine, cold, one_by_one(pair))
        assert furthest(*map(cold, pair)) <= TOLERANCE
        assert cold.request(pair[0]).prompt.pictures[0].content != cold.request(pair[1]).prompt.pictures[0].content
        assert engine.stats()["pictures_encoded"] - before >= 1


def test_a_typed_placeholder_is_text_and_matches_no_picture(engine: Engine, pocket_vl: Checkpoint, cold: Cold) -> None:
    for trap in (traps.a_typed_placeholder, traps.other_typed_special_tokens):
        for asked in trap(QUESTIONS[0]):
            prompt = cold.request(asked).prompt
            bound = [i for start, end, _ in prompt.ranges for i in range(start, end)]
            assert [i for i, id_ in enumerate(prompt.token_ids.tolist()) if id_ == pocket_vl.image_token_id] == bound
    with_picture, typed = traps.a_typed_placeholder(QUESTIONS[0])[:2]
    ask(engine, [cold.request(with_picture, "picture")])
    answer = ask(engine, [cold.request(typed, "typed")])["typed"]
    assert answer.usage.image_tokens == 0
    assert answer.usage.cached_tokens < cold.request(with_picture).prompt.ranges[0].start


def test_a_picture_at_another_offset_is_not_encoded_again(engine: Engine, cold: Cold) -> None:
    first, behind_a_system_prompt = traps.the_same_picture_at_another_offset(QUESTIONS[0])[:3:2]
    ask(engine, [cold.request(first, "first")])
    answer = ask(engine, [cold.request(behind_a_system_prompt, "second")])["second"]
    assert agree(cold(behind_a_system_prompt), answer) <= TOLERANCE
    assert answer.usage.cached_pictures == 1
    assert answer.usage.cached_tokens < cold.request(behind_a_system_prompt).prompt.ranges[0].start
    assert engine.stats()["pictures_encoded"] == 1


@pytest.mark.parametrize("corrupt_first", [True, False])
def test_a_cut_copy_of_a_picture_is_refused_and_the_whole_one_is_answered(
    engine: Engine, cold: Cold, corrupt_first: bool
) -> None:
    rng = random.Random(0)
    noise = drawing()
    noise.putdata([(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(112 * 112)])
    whole = encode(noise, "PNG")
    good, bad = conversation(whole, QUESTIONS[0]), conversation(whole[: len(whole) // 2], QUESTIONS[0])
    for asked in (bad, good, bad) if corrupt_first else (good, bad, good):
        if asked is good:
            assert_each_as_cold(engine, cold, [[good]])
            continue
        engine.add(engine.resolve(cold.request(bad, "bad")))
        events = [event for _ in range(100) if engine.has_requests for event in engine.step(wait=True)]
        assert [type(event.error) for event in events] == [CorruptPicture]


# -- other settings, another model ------------------------------------------------------------------------------


def edited(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def other_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1
    path.write_bytes(data)


def test_the_same_bytes_under_other_settings_or_another_model_are_another_picture(
    pocket_vl: Checkpoint, tmp_path: Path
) -> None:
    changes: dict[str, Callable[[Path], None]] = {
        "none": lambda _: None,
        "pixel limit": lambda f: edited(f, "preprocessor_config.json", max_pixels=100_352),
        "mean": lambda f: edited(f, "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]),
        "vision tower": lambda f: edited(
            f, "config.json", vision_config=dict(pocket_vl.vision_config, hidden_act="gelu")
        ),
        "weights": other_weights,
    }
    asked = conversation(shape("red"), "What?")
    contents = {"here": PromptBuilder(pocket_vl, Limits()).build(asked).pictures[0].content}
    for name, change in changes.items():
        shutil.copytree(pocket_vl.path, tmp_path / name)
        change(tmp_path / name)
        builder = PromptBuilder(read_checkpoint(tmp_path / name, name="copy"), Limits())
        contents[name] = builder.build(asked).pictures[0].content
        contents[f"{name}, salted"] = builder.build(asked, cache_salt="tenant").pictures[0].content
    assert contents["here"] == contents["none"], "where a model lies is no part of a picture's identity"
    assert len(set(contents.values())) == len(contents) - 1


# -- names, through HTTP ----------------------------------------------------------------------------------------


@pytest.fixture
async def http(pocket_vl: Checkpoint) -> AsyncIterator[httpx.AsyncClient]:
    engine = build_engine(pocket_vl, CONFIG)
    local = LocalEngineClient(engine)
    model = ServedModel("pocket-vl")
    service = Service(model, PromptBuilder(pocket_vl, Limits()), local, engine.max_model_len)
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await local.close()


SAME = {"X-Request-Id": "same", "Idempotency-Key": "same"}
OPTIONS = {"max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 20, "seed": 0}


async def by_form(http: httpx.AsyncClient, picture: bytes) -> Any:
    form = {name: json.dumps(value) for name, value in OPTIONS.items()} | {"question": QUESTIONS[0]}
    files = {"image": ("photo.png", picture, "image/png")}
    answer = await http.post("/v1/vqa", data=form, files=files, headers=SAME)
    return answer.raise_for_status().json()["logprobs"]


async def by_chat(http: httpx.AsyncClient, picture: bytes) -> Any:
    url = f"data:image/png;name=photo.png;base64,{base64.b64encode(picture).decode()}"
    image = {"type": "image_url", "image_url": {"url": url, "uuid": "same", "id": "same"}, "uuid": "same"}
    message = {"role": "user", "content": [image, {"type": "text", "text": QUESTIONS[0]}], "id": "same"}
    names = {"id": "same", "request_id": "same", "uuid": "same", "multi_modal_uuids": {"image": ["same"]}}
    answer = await http.post("/v1/chat/completions", json={"messages": [message], **names, **OPTIONS}, headers=SAME)
    return answer.raise_for_status().json()["choices"][0]["logprobs"]


@pytest.mark.anyio
@pytest.mark.parametrize("way", [by_form, by_chat])
@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
async def test_other_pictures_under_equal_names_and_ids(
    http: httpx.AsyncClient, cold: Cold, way: Callable[[httpx.AsyncClient, bytes], Any], order: int
) -> None:
    pictures = [shape("red"), shape("blue"), shape("red", "rectangle"), shape("green"), shape("red")][::order]
    assert_different(cold(conversation(picture, QUESTIONS[0])) for picture in set(pictures))
    for picture in pictures:
        want = cold(conversation(picture, QUESTIONS[0])).steps
        got = (await way(http, picture))["content"]
        assert [step["token"] for step in got] == [step.token for step in want]
        for mine, step in zip(got, want, strict=True):
            values = [entry["logprob"] for entry in mine["top_logprobs"]]
            assert values == pytest.approx([value for _, _, value in step.top], abs=TOLERANCE)


@pytest.mark.anyio
async def test_a_callers_id_for_a_picture_is_refused_by_the_form(http: httpx.AsyncClient) -> None:
    files = {"image": ("photo.png", shape("red"), "image/png")}
    answer = await http.post("/v1/vqa", data={"question": "What?", "uuid": "same"}, files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "uuid")
