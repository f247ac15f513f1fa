"""Cached = uncached, chunked = unchunked, batched = alone, preempted = undisturbed, fetched = computed: random mixes.

The embedded model in float32 on the CPU. Each mix gets an engine of its own with random settings and so few slots that
requests push one another out all the time. Its answers must be those of an engine that serves each request alone and
reuses nothing: the same tokens, and log-probabilities that differ by rounding only. Tokens may part only where
rounding decides (see ``tests.proofs.answers.could_choose``); such answers are counted. The small form runs with the
tests, 500 mixes with ``make proof``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from mmserve.cache.costs import FetchCosts, StepTimes
from mmserve.cache.key import build_key
from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.engine.plan import SamplingRow
from mmserve.engine.sampler import uniform
from mmserve.sampling import SamplingParams
from mmserve.types import IntArray, Prompt, TokenLogprob
from tests.proofs.answers import MAX_STEPS, TOLERANCE, could_choose, distance
from tests.proofs.mixes import Asked, Askers, Truths, engine_config
from tests.reference import NEAR_TIE

COUNTED = (
    *("preemptions", "evicted_tokens", "tier_saved_tokens", "tier_fetched_tokens", "tier_damaged"),
    *("cached_tokens", "prefilled_tokens", "pictures_reused", "pictures_encoded", "steps"),
)


@pytest.fixture(scope="module")
def truths(pocket_vl: Checkpoint) -> Iterator[Truths]:
    truths = Truths(pocket_vl)
    yield truths
    truths.close()


@dataclass(slots=True)
class Report:
    """What all mixes together did. ``furthest`` is the largest difference of two log-probabilities."""

    answers: int = 0
    cancelled: int = 0
    tokens: int = 0
    excused: Counter[str] = field(default_factory=Counter)
    furthest: float = 0.0
    mixes_with: Counter[str] = field(default_factory=Counter)
    stats: Counter[str] = field(default_factory=Counter)

    def compare(self, truths: Truths, asked: Asked, got: list[TokenLogprob], *, whole: bool) -> None:
        """Hold an answer, or (not ``whole``) the beginning of one, against the truth."""
        want = truths.of(asked).steps
        for at, (right, step) in enumerate(zip(want, got, strict=False)):
            apart = distance(right, step)
            self.furthest = max(self.furthest, apart)
            assert apart <= TOLERANCE, f"the logits of token {at} lie {apart} apart"
            self.tokens += 1
            if right.token_id != step.token_id:
                assert truths.could_choose(asked, at, step.token_id), f"token {at} differs, and not by rounding"
                self.excused["greedy" if asked.sampling.greedy else "sampled"] += 1
                break
        else:
            assert len(got) == len(want) if whole else len(got) <= len(want), "one answer is longer than the other"
        self.answers += whole
        self.cancelled += not whole

    def note(self, stats: dict[str, float]) -> None:
        for name in COUNTED:
            self.stats[name] += int(stats[name])
            self.mixes_with[name] += stats[name] > 0


def serve_mix(engine: Engine, truths: Truths, asked: dict[str, Asked], rng: random.Random, report: Report) -> None:
    """Ask all, some later than others, cancel a few, flush now and then; compare what each got."""
    got: dict[str, list[TokenLogprob]] = {}
    waiting, ended, cancelled = list(asked), set[str](), set[str]()
    for _ in range(MAX_STEPS):
        while waiting and (rng.random() < 0.7 or not engine.has_requests):
            name = waiting.pop()
            got[name] = []
            engine.add(engine.resolve(truths.request(asked[name], name)))
        if rng.random() < 0.004 and (running := sorted(got.keys() - ended)):
            cancelled.add(victim := rng.choice(running))
            ended.add(victim)
            engine.abort(victim)
        if rng.random() < 0.004:
            engine.flush()
        for event in engine.step(wait=True):
            assert event.error is None, event.error
            got[event.request_id] += event.logprobs
            if event.last:
                ended.add(event.request_id)
        if not waiting and not engine.has_requests:
            break
    assert ended == asked.keys(), "the engine hangs"
    engine.step()  # what the last request held is forgotten
    for name, steps in got.items():
        report.compare(truths, asked[name], steps, whole=name not in cancelled)


class NoClock(FetchCosts):
    """Decides by length alone: how much is fetched must not hang on how busy the machine is."""

    def observe(self, times: StepTimes) -> None:
        assert times.seconds > 0


@pytest.mark.parametrize("mixes", [10, pytest.param(500, marks=[pytest.mark.proof, pytest.mark.timeout(7200)])])
def test_every_mix_is_answered_as_if_each_request_were_alone(pocket_vl: Checkpoint, truths: Truths, mixes: int) -> None:
    report, askers = Report(), Askers(random.Random(0))
    for mix in range(mixes):
        rng = random.Random(mix)
        asked = {f"{mix}-{i}": askers.next() for i in range(rng.randint(4, 12))}
        requests = [truths.request(one, name) for name, one in asked.items()]
        longest = max(len(r.prompt) + (r.sampling.max_tokens or 0) for r in requests)
        config = engine_config(rng, longest)
        engine = build_engine(pocket_vl, config)
        if engine.scheduler.tier is not None:
            engine.scheduler.tier.costs = NoClock(config.tier_min_tokens)
        try:
            serve_mix(engine, truths, asked, rng, report)
            stats = engine.stats()
            assert stats["slots_free"] + stats["slots_cached"] == stats["slots_total"]
            assert stats["slots_evictable"] == stats["slots_cached"]
            assert stats["encoder_cache_bytes"] <= config.encoder_cache_bytes
            report.note(stats)
        except AssertionError as error:
            error.add_note(f"mix {mix} of {config}")
            raise
        finally:
            engine.close()
    print(f"{mixes} mixes, {len(truths)} different requests: {report}")
    # Nothing is shown by an engine that was never short of slots.
    assert report.mixes_with["preemptions"] > mixes / 2
    assert report.mixes_with["evicted_tokens"] > mixes / 2
    assert report.mixes_with["cached_tokens"] > mixes / 2
    assert report.mixes_with["tier_fetched_tokens"] >= max(1, mixes // 20)
    assert report.stats["preemptions"] > report.answers / 10
    assert report.stats["tier_damaged"] == 0


# -- what is found out, and what is excused ---------------------------------------------------------------------


def test_a_cache_that_takes_pictures_for_one_another_is_found_out(
    pocket_vl: Checkpoint, truths: Truths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(prompt: Prompt, numbers: Sequence[int]) -> IntArray:
        return build_key(prompt, [0] * len(numbers))

    monkeypatch.setattr("mmserve.engine.sequence.build_key", careless)
    askers = Askers(random.Random(0))
    asked = {str(i): askers.next() for i in range(30)}
    engine = build_engine(pocket_vl, EngineConfig(device="cpu", dtype="float32", kv_slots=4096))
    with pytest.raises(AssertionError, match=r"the logits of token \d+ lie"):
        serve_mix(engine, truths, asked, random.Random(0), Report())
    engine.close()


def row(seed: int = 0, **params: Any) -> SamplingRow:
    """A choice at position 30, after tokens 1 and 2."""
    return SamplingRow(SamplingParams(**params), seed, 30, np.arange(1), [1, 2])


def test_a_greedy_choice_is_excused_by_a_near_tie_only() -> None:
    logits = torch.tensor([1.0, 3.0, 3.0 - 0.9 * NEAR_TIE, 3.0 - 1.1 * NEAR_TIE])
    assert [could_choose(logits, row(), token) for token in range(4)] == [False, True, True, False]
    # A penalty on what was said makes a tie, or breaks it.
    assert could_choose(torch.tensor([2.5, 3.0, 0.0]), row(presence_penalty=0.5), 0)
    assert not could_choose(torch.tensor([3.0, 3.0, 0.0]), row(presence_penalty=0.5), 1)


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.99}, {"min_p": 0.01}])
@pytest.mark.parametrize(("beside", "excused"), [(2e-6, True), (1e-3, False)])
def test_a_drawn_choice_is_excused_only_near_the_edge_on_which_the_noise_fell(
    filters: dict[str, float], beside: float, excused: bool
) -> None:
    seed = next(seed for seed in range(100) if 0.6 < uniform(seed, 30) < 0.8)
    share = uniform(seed, 30) - beside  # token 0's, so that the noise falls to token 1
    logits = torch.tensor([share, 1 - share, 1e-9, 1e-9]).log()
    drawn = row(seed, temperature=1.0, **filters)
    assert [could_choose(logits, drawn, token) for token in range(3)] == [excused, True, False]
