"""What each rank holds of a decoder, and that together they compute what one does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kernels.attention import plan_attention
from mmserve.errors import CheckpointError, ConfigError
from mmserve.models import loader
from mmserve.models.batch import ForwardBatch
from mmserve.models.cogvlm import ExpertLayer
from mmserve.models.layers import DecoderConfig, DecoderStack
from mmserve.models.loader import SINGLE_FILE, cuts, destinations, load_weights
from mmserve.models.quantised import QuantisedLinear
from mmserve.models.ranks import ALONE, Cut, Ranks, check_heads, even, joined, share_heads
from mmserve.models.rope import RopeConfig
from tests.models.ranks import Numbered, on_each

PLAIN = DecoderConfig(50, 16, 26, 3, 4, 2, 8, 1e-6, RopeConfig(10_000.0, (4,)), True, False)
SHAPES = {
    "plain": PLAIN,
    "biases": dataclasses.replace(PLAIN, o_bias=True, mlp_bias=True, qk_norm=True),
    "tied": dataclasses.replace(PLAIN, tie_word_embeddings=True, deepstack=1),
    "no head twice": dataclasses.replace(PLAIN, num_kv_heads=4),
    "one key head": dataclasses.replace(PLAIN, num_kv_heads=1),
}
TOKENS = 9


def make(config: DecoderConfig, kind: str = "plain") -> DecoderStack:
    if kind == "experts":
        return DecoderStack(dataclasses.replace(config, marks_experts=True), partial(ExpertLayer, picture_bias=True))
    return DecoderStack(config)


def save(folder: Path, config: DecoderConfig, kind: str = "plain") -> Path:
    """A random checkpoint of the whole decoder, under the names of its destinations."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: place.shape for name, place in destinations(make(config, kind)).items()}
    save_file(
        {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}, folder / SINGLE_FILE
    )
    return folder


def load(folder: Path, config: DecoderConfig, ranks: Ranks, kind: str = "plain", **settings: Any) -> DecoderStack:
    decoder = make(dataclasses.replace(config, ranks=ranks), kind)
    load_weights(decoder, folder, lambda name: name, dtype=torch.float32, device="cpu", **settings)
    return decoder


@torch.inference_mode()
def logits(decoder: DecoderStack, places: Sequence[int] = (0, 4, 5, 8)) -> Tensor:
    """Of two sequences, one with rows of a picture, at some positions."""
    slots = [torch.arange(6), torch.arange(6, TOKENS)]
    shape = (TOKENS, decoder.num_kv_heads, decoder.head_dim)
    caches = [[torch.zeros(shape) for _ in range(decoder.num_layers)] for _ in range(2)]
    rows = torch.randn((2, decoder.row_width), generator=torch.Generator().manual_seed(1))
    batch = ForwardBatch(
        input_ids=torch.arange(TOKENS) * 5 % 50,
        positions=torch.cat([torch.arange(6), torch.arange(3)])[None],
        slots=torch.arange(TOKENS),
        attention=plan_attention(slots, [6, 3], "cpu"),
        logits_index=torch.tensor(places, dtype=torch.int64),
        media_rows=rows,
        media_index=torch.tensor([2, 3]),
    )
    return decoder.forward(batch, *caches)


class TestCuts:
    def test_a_cut_takes_its_ranges_in_order(self) -> None:
        whole = torch.arange(12).view(2, 6)
        assert Cut(6, ((4, 6), (0, 1)), 1).of(whole).tolist() == [[4, 5, 0], [10, 11, 6]]
        assert Cut(2, ((1, 2),)).of(whole).tolist() == [[6, 7, 8, 9, 10, 11]]
        assert Cut(6, ((0, 2),)).along(1) == Cut(6, ((0, 2),), 1)
        assert Cut(6, ((0, 6),)).everything
        assert not Cut(6, ((0, 5),)).everything

    @pytest.mark.parametrize(("length", "size"), [(8, 2), (9, 2), (26, 4), (50, 3), (3, 4), (7, 1)])
    def test_even_parts_cover_all_once_and_join_again(self, length: int, size: int) -> None:
        ranges = [span for rank in range(size) for span in even(length, Numbered(rank, size)).ranges]
        assert [place for start, stop in ranges for place in range(start, stop)] == list(range(length))
        x = torch.randn(4, length)
        for together in on_each(size, lambda ranks: joined(even(length, ranks).along(1).of(x), length, ranks)):
            assert torch.equal(together, x)

    @pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 2), (4, 2, 4), (8, 8, 4), (28, 4, 2), (6, 1, 3)])
    def test_each_query_head_has_its_key_head_beside_it(self, heads: int, kv_heads: int, size: int) -> None:
        seen: list[int] = []
        for rank in range(size):
            share = share_heads(heads, kv_heads, 8, Numbered(rank, size))
            queries = [row // 8 for row in share.queries.of(torch.arange(heads * 8)).tolist()][::8]
            keys = [row // 8 for row in share.keys.of(torch.arange(kv_heads * 8)).tolist()][::8]
            assert (len(queries), len(keys)) == (share.heads, share.kv_heads)
            # As grouped attention pairs them, on a rank and in the whole.
            for i, query in enumerate(queries):
                assert keys[i // (share.heads // share.kv_heads)] == query // (heads // kv_heads)
            seen += queries
            one = torch.arange((heads + 2 * kv_heads) * 8)
            parts = torch.split(one, [heads * 8, kv_heads * 8, kv_heads * 8])
            mine = [share.queries.of(parts[0]), share.keys.of(parts[1]), share.keys.of(parts[2])]
            assert torch.equal(share.merged.of(one), torch.cat(mine))
        assert seen == list(range(heads))

    @pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 3), (12, 2, 3), (12, 4, 6), (2, 1, 4), (4, 4, 0)])
    def test_heads_that_cannot_be_shared(self, heads: int, kv_heads: int, size: int) -> None:
        with pytest.raises(
            ConfigError, match=f"{heads} attention heads over {kv_heads} .* by {size} .*--tp can be 1"
        ) as e:
            check_heads(heads, kv_heads, size)
        assert e.value.param == "tp_size"

    def test_the_sentence_names_what_can_be(self) -> None:
        with pytest.raises(ConfigError, match=r"--tp can be 1, 2, 4, 12$"):
            check_heads(12, 4, 3)


class TestTogether:
    @pytest.mark.parametrize("size", [2, 4])
    @pytest.mark.parametrize("name", SHAPES)
    def test_ranks_compute_what_one_computes(self, name: str, size: int, tmp_path: Path) -> None:
        config, folder = SHAPES[name], save(tmp_path, SHAPES[name])
        expected = logits(load(folder, config, ALONE))
        assert expected.std() > 0.1
        for made in on_each(size, lambda ranks: logits(load(folder, config, ranks))):
            assert made.shape == expected.shape == (4, 50)
            torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("size", [2, 4])
    def test_with_a_picture_s_expert(self, size: int, tmp_path: Path) -> None:
        folder = save(tmp_path, PLAIN, "experts")
        expected = logits(load(folder, PLAIN, ALONE, "experts"))
        for made in on_each(size, lambda ranks: logits(load(folder, PLAIN, ranks, "experts"))):
            torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)

    def test_one_rank_s_arithmetic_is_untouched(self, tmp_path: Path) -> None:
        """Bit for bit: one process pays nothing for what several need."""
        folder = save(tmp_path, PLAIN)
        (made,) = on_each(1, lambda ranks: logits(load(folder, PLAIN, ranks)))
        assert torch.equal(made, logits(load(folder, PLAIN, ALONE)))

    def test_a_step_in_which_nobody_chooses(self, tmp_path: Path) -> None:
        folder = save(tmp_path, PLAIN)
        for made in on_each(2, lambda ranks: logits(load(folder, PLAIN, ranks), ())):
            assert made.shape == (0, 50)

    @pytest.mark.parametrize("quantization", ["int8", "fp8"])
    def test_eight_bits(self, quantization: str, tmp_path: Path) -> None:
        config, folder = SHAPES["biases"], save(tmp_path, SHAPES["biases"])
        exact = logits(load(folder, config, ALONE)).log_softmax(-1)
        alone = logits(load(folder, config, ALONE, quantization=quantization)).log_softmax(-1)

        def rounded(ranks: Ranks) -> Tensor:
            decoder = load(folder, config, ranks, quantization=quantization)
            assert isinstance(decoder.layers[0].self_attn.o_proj, QuantisedLinear)  # type: ignore[union-attr]
            return logits(decoder).log_softmax(-1)

        # A row that several ranks have pieces of is rounded piece by piece: no worse, but not the same.
        for made in on_each(2, rounded):
            assert (made - exact).abs().max() < 2 * (alone - exact).abs().max()


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Counts the values that are read of each tensor."""
    read: dict[str, int] = {}
    opened = loader._opened

    class Slice:
        def __init__(self, name: str, inner: Any) -> None:
            self.name, self.inner = name, inner
            self.get_shape, self.get_dtype = inner.get_shape, inner.get_dtype

        def __getitem__(self, index: Any) -> Tensor:
            value: Tensor = self.inner[index]
            read[self.name] = read.get(self.name, 0) + value.numel()
            return value

    class File:
        def __init__(self, inner: Any) -> None:
            self.inner, self.keys = inner, inner.keys

        def get_slice(self, name: str) -> Slice:
            return Slice(name, self.inner.get_slice(name))

        def get_tensor(self, name: str) -> Tensor:
            return Slice(name, self.inner.get_slice(name))[:]

    @contextmanager
    def open_watched(file: Path) -> Iterator[File]:
        with opened(file) as inner:
            yield File(inner)

    with monkeypatch.context() as patch:
        patch.setattr(loader, "_opened", open_watched)
        yield read


class TestLoading:
    @pytest.mark.parametrize("size", [2, 4])
    @pytest.mark.parametrize("name", ["plain", "biases", "one key head"])
    def test_a_rank_reads_what_it_keeps_and_no_more(
        self, name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config, folder = SHAPES[name], save(tmp_path, SHAPES[name])
        whole = {name: place.numel() for name, place in destinations(make(config)).items()}
        for rank in range(size):
            with watched(monkeypatch) as read:
                decoder = load(folder, config, Numbered(rank, size))
            kept = {name: place.numel() for name, place in destinations(decoder).items()}
            assert read == kept
            assert sum(read.values()) < sum(whole.values()) * (0.6 if size == 2 else 0.4)

    def test_all_ranks_together_have_everything(self, tmp_path: Path) -> None:
        config, folder = SHAPES["biases"], save(tmp_path, SHAPES["biases"])
        whole = destinations(load(folder, config, ALONE))
        found = {name: torch.full_like(tensor, torch.nan) for name, tensor in whole.items()}
        for rank in range(2):
            decoder = load(folder, config, Numbered(rank, 2))
            taken = cuts(decoder)
            for name, place in destinations(decoder).items():
                cut = taken.get(name, Cut(len(place), ((0, len(place)),)))
                ((start, stop),) = cut.ranges
                found[name].narrow(cut.axis, start, stop - start).copy_(place)
        assert all(torch.equal(found[name], whole[name]) for name in whole)

    def test_an_added_bias_is_the_first_rank_s_alone(self, tmp_path: Path) -> None:
        folder = save(tmp_path, SHAPES["biases"])
        first, second = (load(folder, SHAPES["biases"], Numbered(rank, 2)) for rank in range(2))
        both = destinations(first).keys() - destinations(second).keys()
        assert both == {f"layers.{i}.{name}.bias" for i in range(3) for name in ("self_attn.o_proj", "mlp.down_proj")}

    @pytest.mark.parametrize("rank", [0, 1])
    @pytest.mark.parametrize(
        "name", ["layers.1.self_attn.k_proj.weight", "layers.0.mlp.down_proj.weight", "lm_head.weight"]
    )
    def test_a_wrong_shape_is_told_as_of_the_whole(self, name: str, rank: int, tmp_path: Path) -> None:
        folder = save(tmp_path, PLAIN)
        tensors = {key: place.new_zeros(place.shape, device="cpu") for key, place in destinations(make(PLAIN)).items()}
        right = list(tensors[name].shape)
        save_file({**tensors, name: torch.zeros(right[0] + 1, right[1])}, folder / SINGLE_FILE)
        with pytest.raises(CheckpointError, match=rf"{name} .* has shape \[{right[0] + 1}, .*asks for \[{right[0]}, "):
            load(folder, PLAIN, Numbered(rank, 2))

    def test_heads_that_cannot_be_shared_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="cannot be shared evenly by 3"):
            make(dataclasses.replace(PLAIN, ranks=Numbered(0, 3)))
