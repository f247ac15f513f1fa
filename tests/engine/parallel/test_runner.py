"""A shared model answers as one process does, whatever is asked of it. Ranks are threads here, and meet over gloo."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig
from mmserve.engine import runner as runners
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.engine.parallel import runner, worker, workers
from mmserve.engine.plan import SchedulerOutput
from mmserve.errors import CheckpointError, ConfigError, MMServeError
from mmserve.types import ContentHash, Request
from tests.checkpoints import tiny_cogvlm, tiny_general
from tests.engine.parallel.asking import CONFIG, alone, asked, compare, requests, run, tiny, tokens
from tests.engine.parallel.threads import spawn
from tests.models.equality import resolve
from tests.reference import Tally

TWO = dataclasses.replace(CONFIG, tp_size=2)


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(workers, "_spawn", spawn)
    monkeypatch.setattr(worker, "LEAVE_SECONDS", 0.0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # ranks wait for each other many times a step
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny(tmp_path_factory.mktemp("shared"), "qwen2-vl")


@pytest.fixture
def engine(qwen: Checkpoint) -> Iterator[Engine]:
    engine = build_engine(qwen, TWO)
    yield engine
    engine.close()


@pytest.mark.parametrize(
    ("kind", "size", "changes"),
    [
        ("qwen2-vl", 4, {}),  # two ranks have the same key head
        ("qwen3-vl", 2, {}),
        ("llava-onevision", 2, {}),
        ("llama", 4, {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", 2, {"vocab_size": 517, "intermediate_size": 97}),  # neither can be halved
        ("cogvlm2", 2, {}),
    ],
)
def test_families(kind: str, size: int, changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = resolve(tiny_cogvlm(tmp_path, kind)) if kind == "cogvlm2" else tiny(tmp_path, kind, **changes)
    sees = kind not in ("llama", "qwen2")
    shown = ((1, 0, 1, 1) if kind == "cogvlm2" else (1, 2, 0, 3)) if sees else (0, 0, 0)
    wanted, tally = requests(checkpoint, asked(shown)), Tally()
    expected = alone(checkpoint, wanted)
    engine = build_engine(checkpoint, dataclasses.replace(CONFIG, tp_size=size))
    try:
        for _ in range(2):  # together, and once more from the cache
            compare(tally, expected, run(engine, wanted))
    finally:
        engine.close()
    assert tally.compared == 2 * len(wanted)
    assert tally.excused <= 1


def test_eight_bits(qwen: Checkpoint) -> None:
    """They are rounded rank by rank, which changes answers a little; each rank has its share of them."""
    engine = build_engine(qwen, dataclasses.replace(TWO, quantization="int8"))
    try:
        events = run(engine, requests(qwen, asked((1, 0))))
    finally:
        engine.close()
    assert all(len(tokens(each)) == 8 for each in events.values())


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"logit_bias": ((5, 4.0), (100_000, 1.0)), "presence_penalty": 1.0, "min_tokens": 3},
    ],
)
def test_ways_of_choosing(qwen: Checkpoint, engine: Engine, sampling: dict[str, Any]) -> None:
    wanted = requests(qwen, asked((1, 0, 2)), **sampling)
    expected = alone(qwen, wanted)
    got = {name: tokens(events) for name, events in run(engine, wanted).items()}
    assert got == {name: each.token_ids for name, each in expected.items()}


def test_log_probabilities_and_scores(qwen: Checkpoint, engine: Engine) -> None:
    (request,) = requests(qwen, asked((1,)), logprobs=3)
    scored = dataclasses.replace(request, id="scored", score_from=len(request.prompt) - 6)
    one = build_engine(qwen, CONFIG)
    try:
        expected, found = run(one, [request, scored]), run(engine, [request, scored])
    finally:
        one.close()
    for name in ("0", "scored"):
        right = [each for event in expected[name] for each in event.logprobs]
        made = [each for event in found[name] for each in event.logprobs]
        assert len(made) == len(right) in (6, 8)
        assert [each.token_id for each in made] == [each.token_id for each in right]
        assert [each.logprob for each in made] == pytest.approx([each.logprob for each in right], abs=1e-4)
        assert [[id_ for id_, _, _ in each.top] for each in made] == [[id_ for id_, _, _ in each.top] for each in right]


def test_preempted_and_out_of_slots(qwen: Checkpoint) -> None:
    wanted, tally = requests(qwen, asked((1, 1, 2, 0, 1, 1)), max_tokens=24), Tally()
    slots = max(len(request.prompt) for request in wanted) + 40
    engine = build_engine(qwen, dataclasses.replace(TWO, kv_slots=slots, max_running=6, share_threshold=10_000))
    try:
        compare(tally, alone(qwen, wanted), run(engine, wanted))
        assert engine.stats()["preemptions"] > 0
    finally:
        engine.close()
    assert tally.excused <= 1


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[int, runners.Runner]:
    """The runners of all ranks, as they are built."""
    built: dict[int, runners.Runner] = {}
    build = runners.build_runner

    def keep(checkpoint: Checkpoint, config: EngineConfig, ranks: Any, agree: Any) -> runners.Runner:
        built[ranks.rank] = build(checkpoint, config, ranks, agree)
        return built[ranks.rank]

    monkeypatch.setattr(runner, "build_runner", keep)
    monkeypatch.setattr(worker, "build_runner", keep)
    return built


class TestSecondTier:
    @pytest.fixture
    def wanted(self, qwen: Checkpoint) -> list[Request]:
        first, second = requests(qwen, asked((1, 1)))
        return [first, second, dataclasses.replace(first, id="again")]

    def build(self, qwen: Checkpoint, wanted: list[Request]) -> Engine:
        slots = max(len(request.prompt) for request in wanted) + 12
        config = dataclasses.replace(TWO, kv_slots=slots, encoder_cache_bytes=0, tier_bytes=1 << 20, tier_min_tokens=2)
        return build_engine(qwen, config)

    def test_each_rank_s_part_comes_back(
        self, qwen: Checkpoint, wanted: list[Request], watched: dict[int, runners.Runner]
    ) -> None:
        tally, expected = Tally(), alone(qwen, wanted)
        engine = self.build(qwen, wanted)
        try:
            for request in wanted:
                compare(tally, {request.id: expected[request.id]}, run(engine, [request]))
            stats = engine.stats()
        finally:
            engine.close()
        assert watched[0].tier_slots == watched[1].tier_slots > 0
        assert stats["tier_fetched_tokens"] >= wanted[0].prompt.picture_tokens
        assert stats["pictures_encoded"] == 2

    def test_one_that_is_damaged_on_another_rank_costs_time_only(
        self, qwen: Checkpoint, wanted: list[Request], watched: dict[int, runners.Runner]
    ) -> None:
        tally, expected = Tally(), alone(qwen, wanted)
        engine = self.build(qwen, wanted)
        try:
            for request in wanted:
                if request.id == "again":
                    store: Any = watched[1]._store
                    os.truncate(store.file.fileno(), 100)
                compare(tally, {request.id: expected[request.id]}, run(engine, [request]))
            stats = engine.stats()
        finally:
            engine.close()
        assert stats["tier_damaged"] == 1
        assert stats["pictures_encoded"] == 3


class TestMemory:
    def test_all_have_the_slots_that_the_poorest_can_have(
        self, qwen: Checkpoint, watched: dict[int, runners.Runner], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted = iter((900, 700))
        monkeypatch.setattr(runners, "count_slots", lambda *_: next(counted))
        engine = build_engine(qwen, TWO)
        engine.close()
        assert {each.num_slots for each in watched.values()} == {700}
        assert engine.max_model_len == 700

    def test_a_rank_has_half_of_the_decoder_and_of_the_memory_for_keys(
        self, qwen: Checkpoint, watched: dict[int, runners.Runner]
    ) -> None:
        def weights(runner: runners.Runner) -> int:
            decoder: Any = runner._decoder
            return sum(each.numel() for each in decoder.parameters() if each.ndim == 2)

        sized = dataclasses.replace(CONFIG, kv_slots=None, kv_bytes=1 << 20, tier_bytes=1 << 18)
        engine = build_engine(qwen, dataclasses.replace(sized, tp_size=2))
        engine.close()
        whole = runners.build_runner(qwen, sized)
        whole.close()
        assert [weights(each) for each in watched.values()] == [weights(whole) // 2] * 2
        assert [each.num_slots for each in watched.values()] == [whole.num_slots] * 2
        assert [each.tier_slots for each in watched.values()] == [whole.tier_slots] * 2
        kept: torch.Tensor = watched[1]._kv.keys[0]
        assert kept.shape == (whole.num_slots, 1, 16)


class TestFailures:
    def test_a_picture_that_cannot_be_encoded_ends_its_step_alone(
        self, qwen: Checkpoint, watched: dict[int, runners.Runner], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = requests(qwen, asked((2, 1)))
        engine = build_engine(qwen, TWO)
        try:
            encoder: Any = watched[0]._towers["image"].encoder
            with monkeypatch.context() as patch:
                patch.setattr(encoder._encoder, "encode", None)
                (events,) = run(engine, wanted[:1]).values()
                assert isinstance(events[-1].error, MMServeError)
                assert "EncodingFailed" in events[-1].error.message
            compare(Tally(), alone(qwen, wanted[1:]), run(engine, wanted[1:]))
        finally:
            engine.close()

    def test_what_fails_in_choosing_is_one_step_s(
        self, qwen: Checkpoint, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = requests(qwen, asked((0, 1)))
        with monkeypatch.context() as patch:
            patch.setattr(runners, "sample", None)
            (events,) = run(engine, wanted[:1]).values()
            assert isinstance(events[-1].error, MMServeError)
        compare(Tally(), alone(qwen, wanted[1:]), run(engine, wanted[1:]))

    def test_pixels_that_are_not_wanted_any_more_are_forgotten(self, qwen: Checkpoint, engine: Engine) -> None:
        shared: Any = engine._runner
        (request,) = requests(qwen, asked((1,)))
        (picture,) = request.prompt.media
        shared.put_prepared(picture.content, shared.prepare(picture))
        shared.execute(SchedulerOutput(forget=(picture.content,)))
        assert not shared._prepared


class TestStart:
    """What fails on one rank while it loads is what the caller gets, and no rank stays behind."""

    @pytest.mark.parametrize(
        ("error", "kind", "says"),
        [
            (CheckpointError("a tensor is damaged"), CheckpointError, "^a tensor is damaged$"),
            (KeyError("q_proj"), MMServeError, "^KeyError: 'q_proj'$"),
        ],
    )
    def test_another_rank(
        self, qwen: Checkpoint, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], says: str
    ) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(worker, "build_runner", fail)
        with pytest.raises(kind, match=says):
            build_engine(qwen, TWO)

    def test_rank_0(self, qwen: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[Any] = []

        def start(rank: int) -> Any:
            started.append(spawn(rank))
            return started[-1]

        def fail(*_: object) -> None:
            raise ConfigError("too little memory")

        monkeypatch.setattr(workers, "_spawn", start)
        monkeypatch.setattr(runner, "build_runner", fail)
        with pytest.raises(ConfigError, match="too little memory"):
            build_engine(qwen, TWO)
        assert len(started) == 1
        assert started[0].process.poll() is not None

    def test_nothing_is_left_of_the_folder_where_they_meet(
        self, qwen: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        build_engine(qwen, TWO).close()
        assert list(tmp_path.iterdir()) == []


class TestRefusals:
    @pytest.mark.parametrize("size", [3, 8])
    def test_heads_that_cannot_be_shared(self, qwen: Checkpoint, size: int) -> None:
        with pytest.raises(ConfigError, match=r"4 attention heads over 2 of keys and values .* --tp can be 1, 2, 4"):
            build_engine(qwen, dataclasses.replace(CONFIG, tp_size=size))

    @pytest.mark.parametrize("size", [0, -1])
    def test_a_number_that_is_none(self, qwen: Checkpoint, size: int) -> None:
        with pytest.raises(ConfigError, match=f"--tp must be 1 or more processes, not {size}"):
            build_engine(qwen, dataclasses.replace(CONFIG, tp_size=size))

    def test_the_general_path(self, tmp_path: Path) -> None:
        checkpoint = resolve(tiny_general(tmp_path, "idefics3"))
        with pytest.raises(ConfigError, match=r"computed by transformers .*: leave --tp out"):
            build_engine(checkpoint, TWO)

    def test_too_few_gpus(self, qwen: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        with pytest.raises(ConfigError, match="--tp 2 takes 2 GPUs, but there are 1 from cuda:2 on"):
            build_engine(qwen, dataclasses.replace(TWO, device="cuda:2"))


def test_pixels_are_sent_to_who_encodes_them_alone(qwen: Checkpoint, engine: Engine) -> None:
    shared: Any = engine._runner
    (request,) = requests(qwen, asked((3,)))
    contents = [picture.content for picture in request.prompt.media]
    for picture in request.prompt.media:
        shared.put_prepared(picture.content, shared.prepare(picture))
    plan = SchedulerOutput(encode=tuple(contents))
    told: list[dict[ContentHash, runners.Prepared]] = [dict(step.prepared) for step in shared._steps(plan)]
    for content in contents:
        assert sorted(each[content].values.values.is_meta for each in told) == [False, True]
    assert {any(not each[content].values.values.is_meta for content in contents) for each in told} == {True}
