from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmserve.engine import sampler
from mmserve.engine.plan import SamplingRow
from mmserve.engine.sampler import Allowed, sample, score, uniform
from mmserve.errors import InvalidField
from mmserve.sampling import SamplingParams

VOCABULARY = 300


def make_row(
    *,
    seed: int = 0,
    position: int = 0,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    banned: tuple[int, ...] = (),
    **params: Any,
) -> SamplingRow:
    prompt_ids = np.array(prompt, dtype=np.int64)
    prompt_ids.flags.writeable = False
    return SamplingRow(SamplingParams(**params), seed, position, prompt_ids, list(output), banned)


def random_logits(rows: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


# The oracle: SamplingParams' docstring in plain Python floats.


def penalised(logits: Sequence[float], row: SamplingRow) -> list[float]:
    params, counts, out = row.params, Counter(row.output_ids), list(logits)
    for token in {*row.prompt_ids.tolist(), *row.output_ids}:
        factor = params.repetition_penalty
        out[token] = out[token] / factor if out[token] > 0 else out[token] * factor
    for token, count in counts.items():
        out[token] -= params.frequency_penalty * count + params.presence_penalty
    for token, bias in params.logit_bias:
        out[token] += bias
    for token in row.banned:
        out[token] = -math.inf
    return out


def kept(logits: Sequence[float], params: SamplingParams, slack: float = 0.0) -> list[tuple[int, float]]:
    """What the filters keep, best first, with its weight; ``slack`` loosens top-p and min-p (negative: tightens)."""
    best = max(logits)
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: params.top_k or None]
    weights = [math.exp((logits[i] - best) / params.temperature) for i in ranked]
    total, before = sum(weights), 0.0
    result: list[tuple[int, float]] = []
    for token, weight in zip(ranked, weights, strict=True):
        passes = before < (params.top_p + slack) * total and weight >= (params.min_p - slack) * weights[0]
        if passes or not result:
            result.append((token, weight))
        before += weight
    return result


def allowed(logits: Sequence[float], row: SamplingRow) -> tuple[set[int], set[int]]:
    """The ids surely kept and the ids perhaps kept, float32 rounding considered."""
    values = penalised(logits, row)
    sets = [{token for token, _ in kept(values, row.params, slack)} for slack in (-1e-5, 1e-5)]
    return sets[0], sets[1]


class TestGreedy:
    def test_takes_the_best_token_of_each_row(self) -> None:
        logits = random_logits(5)
        expected = [max(range(VOCABULARY), key=row.__getitem__) for row in logits.tolist()]
        assert sample(logits, [make_row() for _ in range(5)]).token_ids == expected

    def test_of_equal_logits_takes_the_lowest_id(self) -> None:
        logits = torch.zeros(3, 5000)
        logits[:, [700, 17, 4999]] = 2.0
        rows = [make_row(), make_row(presence_penalty=1.0), make_row(temperature=1.0, top_k=1)]
        assert sample(logits, rows).token_ids == [17, 17, 17]

    def test_leaves_the_logits_as_they_were(self) -> None:
        logits = random_logits(3)
        before = logits.clone()
        rows = [make_row(), make_row(banned=(1,), output=[2], presence_penalty=1.0), make_row(temperature=1, top_p=0.5)]
        sample(logits, [*rows])
        assert torch.equal(logits, before)

    def test_logprobs_are_none_unless_asked_for(self) -> None:
        assert sample(random_logits(2), [make_row(), make_row(temperature=1.0)]).logprobs == [None, None]


class TestPenaltiesAndBans:
    @given(
        st.floats(0.3, 3.0),
        st.floats(-2.0, 2.0),
        st.floats(-2.0, 2.0),
        st.lists(st.integers(0, 9), max_size=8),
        st.lists(st.integers(0, 9), max_size=8),
        st.sets(st.integers(0, 9), max_size=4),
        st.dictionaries(st.integers(0, 9), st.floats(-100.0, 100.0), max_size=4),
        st.integers(0, 99),
    )
    @settings(deadline=None, max_examples=150)
    def test_greedy_takes_the_best_of_what_remains(
        self,
        repetition: float,
        presence: float,
        frequency: float,
        prompt: list[int],
        output: list[int],
        banned: set[int],
        biases: dict[int, float],
        seed: int,
    ) -> None:
        row = make_row(
            prompt=prompt,
            output=output,
            banned=tuple(banned),
            logit_bias=tuple(biases.items()),
            repetition_penalty=repetition,
            presence_penalty=presence,
            frequency_penalty=frequency,
        )
        logits = random_logits(1, seed, vocabulary=10)
        values = penalised(logits[0].tolist(), row)
        (token,) = sample(logits, [row]).token_ids
        assert values[token] == pytest.approx(max(values), abs=2e-5)

    def test_repetition_counts_the_prompt_and_the_others_only_the_output(self) -> None:
        logits = torch.tensor([[1.0, 0.9, 0.8]])
        assert sample(logits, [make_row(prompt=[0], repetition_penalty=2.0)]).token_ids == [1]
        assert sample(logits, [make_row(prompt=[0], presence_penalty=2.0)]).token_ids == [0]
        assert sample(logits, [make_row(prompt=[0], frequency_penalty=2.0)]).token_ids == [0]

    def test_frequency_grows_with_the_count_and_presence_does_not(self) -> None:
        logits = torch.tensor([[1.0, 0.5]])
        output = [0, 0, 0]
        assert sample(logits, [make_row(output=output, frequency_penalty=0.2)]).token_ids == [1]
        assert sample(logits, [make_row(output=output, presence_penalty=0.2)]).token_ids == [0]

    def test_banned_ids_are_never_sampled(self) -> None:
        rows = [make_row(temperature=1.0, banned=(0, 2), position=position) for position in range(64)]
        assert set(sample(torch.zeros(64, 4), rows).token_ids) == {1, 3}

    def test_a_banned_id_outside_the_vocabulary_is_ignored(self) -> None:
        """A caller may send any number as a stop token id."""
        assert sample(torch.tensor([[0.0, 1.0]]), [make_row(banned=(1, 2, 10**9, -1))]).token_ids == [0]

    def test_a_bias_shifts_the_frequencies_of_its_own_row_and_leaves_the_logprobs(self) -> None:
        biases = ((0, -100.0), (2, math.log(3.0)), (10**9, 100.0))
        rows = [make_row(temperature=1.0, position=position, logit_bias=biases, logprobs=0) for position in range(4000)]
        found = sample(torch.zeros(4001, 3), [*rows, make_row()])
        counts = Counter(found.token_ids[:-1])
        assert counts[0] == 0
        assert counts[2] / 4000 == pytest.approx(0.75, abs=0.03)
        assert found.token_ids[-1] == 0
        assert found.logprobs[0] is not None
        assert found.logprobs[0].chosen == pytest.approx(math.log(1 / 3))

    def test_a_bias_does_not_win_over_a_grammar(self) -> None:
        allowed = Allowed(torch.tensor([[0b10]], dtype=torch.int32), torch.tensor([0]))
        assert sample(torch.zeros(1, 3), [make_row(logit_bias=((0, 100.0),))], allowed).token_ids == [1]

    @pytest.mark.parametrize("bias", [((1, 101.0),), ((1, math.nan),), ((-1, 1.0),), ((1, 1.0), (1, 2.0))])
    def test_a_bias_that_is_none_is_refused(self, bias: tuple[tuple[int, float], ...]) -> None:
        with pytest.raises(InvalidField) as error:
            SamplingParams(logit_bias=bias)
        assert error.value.param == "logit_bias"

    def test_only_so_many_tokens_may_be_biased(self) -> None:
        SamplingParams(logit_bias=tuple((i, 1.0) for i in range(1024)))
        with pytest.raises(InvalidField, match="1024"):
            SamplingParams(logit_bias=tuple((i, 1.0) for i in range(1025)))


class TestFilters:
    @given(
        st.floats(0.1, 3.0),
        st.integers(0, 12),
        st.floats(1e-6, 1.0),
        st.sampled_from([0.0, 0.02, 0.3, 1.0]),
        st.integers(0, 99),
        st.sampled_from([1, 3, 64]),
    )
    @settings(deadline=None, max_examples=150)
    def test_draws_all_that_is_kept_and_nothing_else(
        self, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, candidates: int
    ) -> None:
        params: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        row = make_row(**params)
        logits = random_logits(1, seed, vocabulary=12).mul_(0.3)
        surely, perhaps = allowed(logits[0].tolist(), row)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampler, "FIRST_CANDIDATES", candidates)
            drawn = set(draw(logits[0], row, 400))
        assert drawn <= perhaps
        weights = dict(kept(penalised(logits[0].tolist(), row), row.params))
        likely = {token for token, weight in weights.items() if weight > 0.05 * sum(weights.values())}
        assert likely & surely <= drawn  # missed with a chance of 1e-9

    def test_top_k_keeps_exactly_k_of_equal_logits(self) -> None:
        assert set(draw(torch.zeros(1000), make_row(temperature=1.0, top_k=3), 200)) == {0, 1, 2}

    def test_a_top_k_beyond_the_vocabulary_keeps_everything(self) -> None:
        row = make_row(temperature=1.0, top_k=2**31 - 1)
        assert set(draw(torch.zeros(40), row, 1000)) == set(range(40))

    def test_zeros_of_either_sign_are_equal(self) -> None:
        assert set(draw(torch.tensor([-0.0, 0.0]), make_row(temperature=1.0, top_k=1), 20)) == {0}

    def test_top_p_keeps_the_fewest_that_reach_it(self) -> None:
        quarters = torch.zeros(4)
        for top_p, count in ((0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.7501, 4)):
            drawn = set(draw(quarters, make_row(temperature=1.0, top_p=top_p), 200))
            assert drawn == set(range(count)), top_p

    def test_a_tiny_top_p_keeps_the_best(self) -> None:
        logits = random_logits(1)[0]
        assert set(draw(logits, make_row(temperature=5.0, top_p=1e-6), 50)) == {int(logits.argmax())}

    def test_top_p_takes_its_share_of_what_top_k_left(self) -> None:
        drawn = set(draw(torch.zeros(10), make_row(temperature=1.0, top_k=4, top_p=0.5), 200))
        assert drawn == {0, 1}

    def test_top_p_takes_its_share_of_more_than_the_first_candidates(self) -> None:
        """Token 0 alone is 0.5 of the 100 best, but 39 tokens are 0.2 of everything."""
        weights = torch.tensor([1.0] + [0.01] * 99 + [0.001] * 4900)
        assert set(draw(weights.log(), make_row(temperature=1.0, top_k=100, top_p=0.2), 300)) == {0}

    def test_min_p_keeps_what_equals_its_bound(self) -> None:
        logits = torch.tensor([0.0, math.log(0.5), math.log(0.4)])
        assert set(draw(logits, make_row(temperature=1.0, min_p=0.499999), 300)) == {0, 1}
        assert set(draw(torch.zeros(5), make_row(temperature=1.0, min_p=1.0), 300)) == {0, 1, 2, 3, 4}

    def test_looks_beyond_the_first_candidates_where_a_filter_keeps_more(self) -> None:
        """A flat distribution, of which top-p keeps 900 tokens; a peaked neighbour needs one."""
        vocabulary, positions = 1000, 3000
        logits = torch.zeros(positions, vocabulary)
        logits[-1, 5] = 30.0
        rows = [make_row(temperature=1.0, top_p=0.9, position=position) for position in range(positions)]
        tokens = sample(logits, rows).token_ids
        assert max(tokens[:-1]) > 850
        assert max(tokens[:-1]) < 901
        assert tokens[-1] == 5

    @pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6])
    def test_a_temperature_near_zero_is_greedy(self, temperature: float) -> None:
        logits = random_logits(1)[0]
        assert set(draw(logits, make_row(temperature=temperature), 20)) == {int(logits.argmax())}
        assert set(draw(logits, make_row(temperature=temperature, top_p=0.9), 20)) == {int(logits.argmax())}


def draw(logits: Tensor, row: SamplingRow, count: int) -> list[int]:
    """Tokens of ``count`` positions with the same logits, in one batch."""
    rows = [
        SamplingRow(row.params, row.seed, position, row.prompt_ids, row.output_ids, row.banned)
        for position in range(count)
    ]
    return sample(logits.expand(count, -1), rows).token_ids


class TestNoise:
    def test_is_uniform(self) -> None:
        values = [uniform(seed, position) for seed in range(100) for position in range(200)]
        assert all(0.0 <= value < 1.0 for value in values)
        assert chi_square([math.floor(20 * value) for value in values], [0.05] * 20) < chi_square_bound(19)

    def test_neighbouring_seeds_and_positions_are_independent(self) -> None:
        """Seen as pairs (u(s, p), u(s, p + 1)) and (u(s, p), u(s + 1, p)) on a 6 by 6 grid."""
        for ds, dp in ((0, 1), (1, 0), (1, 1), (1, -1)):
            cells = [
                6 * math.floor(6 * uniform(seed, position)) + math.floor(6 * uniform(seed + ds, position + dp))
                for seed in range(100)
                for position in range(1, 200, 2)
            ]
            assert chi_square(cells, [1 / 36] * 36) < chi_square_bound(35)

    def test_negative_and_large_seeds_differ(self) -> None:
        seeds = [0, 1, -1, 2**63, -(2**63) + 1, 2**64 - 2]
        assert len({uniform(seed, 0) for seed in seeds}) == len(seeds)

    def test_is_fixed_for_ever(self) -> None:
        """A stored request must sample the same after an upgrade. SplitMix64's first output for state 0 is known."""
        assert sampler._mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
        assert uniform(0, 0) == (0xE220A8397B1DCDAF >> 11) / 2**53
        assert [uniform(42, 7), uniform(-1, 0)] == [0.15289334222649975, 0.64635420864685]


def chi_square(values: Sequence[int], probabilities: Sequence[float]) -> float:
    counts = Counter(values)
    assert set(counts) <= set(range(len(probabilities)))
    pairs = ((counts[i], len(values) * p) for i, p in enumerate(probabilities))
    return sum((seen - expected) ** 2 / expected for seen, expected in pairs)


def chi_square_bound(degrees: int) -> float:
    """About the 1 - 1e-6 quantile (Wilson and Hilferty 1931); the seeds are fixed, so no test fails by chance."""
    return degrees * (1 - 2 / (9 * degrees) + 4.75 * math.sqrt(2 / (9 * degrees))) ** 3


class TestDistribution:
    @pytest.mark.parametrize("vary", ["seed", "position"])
    @pytest.mark.parametrize(
        "params",
        [
            {"temperature": 1.0},
            {"temperature": 0.6},
            {"temperature": 1.5, "top_k": 7},
            {"temperature": 1.0, "top_p": 0.8},
            {"temperature": 1.0, "min_p": 0.1},
            {"temperature": 1.2, "top_k": 9, "top_p": 0.95, "min_p": 0.05},
        ],
    )
    def test_frequencies_follow_the_kept_weights(self, params: dict[str, Any], vary: str) -> None:
        logits = random_logits(1, seed=3, vocabulary=12)[0] / 2
        numbers = range(1000, 9000)
        rows = [make_row(**(params | {vary: number})) for number in numbers]
        tokens = sample(logits.expand(len(rows), -1), rows).token_ids
        weights = kept(logits.tolist(), rows[0].params)
        place = {token: i for i, (token, _) in enumerate(weights)}
        total = sum(weight for _, weight in weights)
        probabilities = [weight / total for _, weight in weights]
        assert chi_square([place[token] for token in tokens], probabilities) < chi_square_bound(len(weights) - 1)

    @given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**20), st.integers(0, 999))
    @settings(deadline=None, max_examples=100)
    def test_inverts_the_distribution_at_the_noise(self, seed: int, position: int, noise: int) -> None:
        logits = random_logits(1, noise, vocabulary=9)
        values = logits[0].tolist()
        weights = [math.exp(value - max(values)) for value in values]
        (token,) = sample(logits, [make_row(temperature=1.0, seed=seed, position=position)]).token_ids
        at = uniform(seed, position) * sum(weights)
        assert sum(weights[:token]) - 1e-6 <= at <= sum(weights[: token + 1]) + 1e-6

    def test_noise_next_to_one_stays_on_a_token_that_has_mass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampler, "uniform", lambda *_: 1 - 2.0**-53)
        logits = torch.tensor([[0.0, 1.0, -1e9, -1e9]])
        assert sample(logits, [make_row(temperature=1.0)]).token_ids == [1]
        assert sample(logits, [make_row(temperature=1.0, top_p=0.9999999)]).token_ids == [0]

    def test_noise_zero_skips_tokens_without_mass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampler, "uniform", lambda *_: 0.0)
        assert sample(torch.tensor([[-1e9, -1e9, 0.0]]), [make_row(temperature=1.0)]).token_ids == [2]


class TestBatches:
    def mixed(self) -> list[SamplingRow]:
        return [
            make_row(),
            make_row(temperature=0.8, seed=1, position=7),
            make_row(temperature=1.0, top_k=5, seed=2, position=3),
            make_row(prompt=[1, 2, 3], output=[4, 4], repetition_penalty=1.3, logprobs=2),
            make_row(temperature=1.3, top_p=0.7, seed=3, position=90, logprobs=0),
            make_row(banned=(5, 6)),
            make_row(temperature=1.0, min_p=0.2, banned=(9,), seed=4, output=[1], frequency_penalty=0.5),
            make_row(temperature=2.0, top_k=200, top_p=0.99, seed=5, logit_bias=((3, 4.0), (7, -2.0))),
        ]

    def test_a_row_samples_the_same_alone_in_any_company_and_order(self) -> None:
        rows, logits = self.mixed(), random_logits(8)
        together = sample(logits, rows)
        for i, row in enumerate(rows):
            alone = sample(logits[i : i + 1], [row])
            assert alone.token_ids == together.token_ids[i : i + 1]
        order = [5, 2, 7, 0, 4, 1, 6, 3]
        shuffled = sample(logits[order], [rows[i] for i in order])
        assert shuffled.token_ids == [together.token_ids[i] for i in order]
        for found, i in zip(shuffled.logprobs, order, strict=True):
            expected = together.logprobs[i]
            assert (found is None) == (expected is None)
            assert found is None or expected is None or found.chosen == pytest.approx(expected.chosen, abs=1e-6)

    def test_gives_plain_ints(self) -> None:
        assert all(type(token) is int for token in sample(random_logits(8), self.mixed()).token_ids)


class TestLogprobs:
    def test_are_the_models_own_before_penalties_and_temperature(self) -> None:
        logits = random_logits(1)
        row = make_row(output=[3], banned=(7,), temperature=0.3, top_k=4, frequency_penalty=2.0, logprobs=3)
        sampled = sample(logits, [row])
        expected = logits[0].double().log_softmax(0)
        (found,) = sampled.logprobs
        assert found is not None
        assert found.chosen == pytest.approx(expected[sampled.token_ids[0]].item(), abs=1e-5)
        best = sorted(range(VOCABULARY), key=lambda i: -expected[i].item())[:3]
        assert [token for token, _ in found.top] == best
        assert [value for _, value in found.top] == pytest.approx([expected[i].item() for i in best], abs=1e-5)

    def test_zero_gives_the_chosen_token_only(self) -> None:
        (found,) = sample(random_logits(1), [make_row(logprobs=0)]).logprobs
        assert found is not None
        assert found.top == ()

    def test_each_row_gets_its_own_number(self) -> None:
        found = sample(random_logits(4), [make_row(logprobs=n) for n in (None, 0, 2, 20)]).logprobs
        assert [None if row is None else len(row.top) for row in found] == [None, 0, 2, 20]

    def test_of_equal_logits_the_lowest_ids_come_first(self) -> None:
        (found,) = sample(torch.zeros(1, 500), [make_row(logprobs=4)]).logprobs
        assert found is not None
        assert [token for token, _ in found.top] == [0, 1, 2, 3]

    def test_a_small_vocabulary_gives_what_it_has(self) -> None:
        (found,) = sample(torch.zeros(1, 3), [make_row(logprobs=20)]).logprobs
        assert found is not None
        assert [value for _, value in found.top] == pytest.approx([math.log(1 / 3)] * 3)


class TestAllowed:
    """Grammar masks: only allowed tokens are chosen, whatever else is asked for."""

    @staticmethod
    def masks(allowed: Sequence[Sequence[int]], vocabulary: int = VOCABULARY) -> Tensor:
        bits = np.zeros((len(allowed), -(-vocabulary // 32) * 32), dtype=bool)
        for row, ids in enumerate(allowed):
            bits[row, list(ids)] = True
        return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int32))

    @settings(deadline=None, max_examples=100)
    @given(
        st.integers(0, 2**31),
        st.sampled_from([0.0, 0.7, 5.0]),
        st.sampled_from([0, 1, 3, 40]),
        st.sampled_from([1.0, 0.5]),
        st.sampled_from([0.0, 0.3]),
    )
    def test_every_choice_is_allowed(
        self, seed: int, temperature: float, top_k: int, top_p: float, min_p: float
    ) -> None:
        rng = np.random.default_rng(seed)
        logits = random_logits(6, seed)
        chosen = rng.permutation(6)[:4]
        allowed = [rng.permutation(VOCABULARY)[: rng.integers(1, 9)].tolist() for _ in chosen]
        rows = [
            make_row(
                seed=i,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                output=[1, 2],
                presence_penalty=1.0,
            )
            for i in range(6)
        ]
        before = logits.clone()
        found = sample(logits, rows, Allowed(self.masks(allowed), torch.from_numpy(chosen.astype(np.int64)))).token_ids
        assert torch.equal(logits, before)
        free = sample(logits, rows).token_ids
        for row, ids in zip(chosen, allowed, strict=True):
            assert found[row] in ids
        for row in set(range(6)) - set(chosen.tolist()):
            assert found[row] == free[row]

    def test_the_mask_comes_before_the_filters(self) -> None:
        logits = torch.tensor([[9.0, 8.0, 1.0, 0.5]])
        masks = Allowed(self.masks([[2, 3]], 4), torch.tensor([0]))
        seen = {sample(logits, [make_row(seed=s, temperature=1.0, top_k=2)], masks).token_ids[0] for s in range(40)}
        assert seen == {2, 3}

    def test_log_probabilities_are_the_models_own(self) -> None:
        logits = torch.tensor([[2.0, 0.0]])
        found = sample(logits, [make_row(logprobs=2)], Allowed(self.masks([[1]], 2), torch.tensor([0])))
        assert found.token_ids == [1]
        (entry,) = found.logprobs
        assert entry is not None
        assert entry.chosen == pytest.approx(logits.log_softmax(-1)[0, 1].item())


def test_scores_are_log_softmax_of_the_targets() -> None:
    logits = random_logits(5)
    targets = torch.tensor([0, 7, 299, 7, 3])
    for entry, row, target, top in zip(
        score(logits, targets, [0, 2, 0, 5, 1]), logits, targets, [0, 2, 0, 5, 1], strict=True
    ):
        expected = row.log_softmax(-1)
        assert entry.chosen == pytest.approx(expected[target].item())
        assert [id_ for id_, _ in entry.top] == row.topk(5).indices.tolist()[:top]
    assert [entry.top for entry in score(logits, targets, [0] * 5)] == [()] * 5
