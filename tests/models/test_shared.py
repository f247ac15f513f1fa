"""Pictures that several ranks encode side by side."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmserve.models.families import build_model
from mmserve.models.shared import EncodingFailed, SharedEncoder, blank, shares
from mmserve.types import Grid
from tests.checkpoints import tiny_qwen2_vl
from tests.models.equality import resolve
from tests.models.ranks import ThreadRanks, on_each
from vision.pixels import Pixels

CPU = torch.device("cpu")


def pixels(rows: int, value: float = 1.0) -> Pixels:
    return Pixels(torch.full((rows, 4), value), Grid(1, rows, 1), extras={"mask": torch.ones(rows, 2)})


class Counting:
    """Makes as many rows of a picture as it has patches, each its value; fails at a picture of sevens."""

    row_width = 3

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def encode(self, pictures: Sequence[Pixels]) -> list[Tensor]:
        self.encoded += [len(picture.values) for picture in pictures]
        if any((picture.values == 7.0).any() for picture in pictures):
            raise ValueError("seven")
        return [picture.values[:, :3].clone() for picture in pictures]


def shared(encoder: Counting, ranks: ThreadRanks) -> SharedEncoder[Pixels]:
    return SharedEncoder(encoder, 3, ranks, dtype=torch.float32, device=CPU)


def seen_by(rank: int, pictures: Sequence[Pixels], size: int) -> list[Pixels]:
    given = shares(pictures, size)
    return [picture if given[i] == rank else blank(picture) for i, picture in enumerate(pictures)]


class TestShares:
    def test_the_largest_go_first_to_whoever_has_least(self) -> None:
        given = shares([pixels(n) for n in (1, 9, 4, 4, 2)], 2)
        load = [sum(n for n, rank in zip((1, 9, 4, 4, 2), given, strict=True) if rank == each) for each in (0, 1)]
        assert sorted(load) == [10, 10]

    def test_all_to_one_where_there_is_one(self) -> None:
        assert shares([pixels(3), pixels(4)], 1) == [0, 0]
        assert shares([], 4) == []

    def test_what_is_blank_keeps_its_shape_and_weighs_nothing(self) -> None:
        large = Pixels(torch.ones(1000, 100), Grid(1, 1000, 1), (3, 4), {"mask": torch.ones(1000, 100)})
        empty = pickle.loads(pickle.dumps(blank(large)))
        assert (empty.grid, empty.size) == (large.grid, large.size)
        assert empty.values.shape == large.values.shape
        assert {name: value.shape for name, value in empty.extras.items()} == {"mask": (1000, 100)}
        assert len(pickle.dumps(blank(large))) < 2000
        assert shares([empty, pixels(3)], 2) == shares([large, pixels(3)], 2)

    def test_whatever_an_encoder_takes(self) -> None:
        """Not pictures alone: sounds are spectra, of which some frames count."""
        spectrum = Spectrum(torch.ones(80, 50), 12)
        empty = blank(spectrum)
        assert (empty.values.is_meta, empty.values.shape, empty.frames) == (True, (80, 50), 12)
        assert not spectrum.values.is_meta
        assert shares([spectrum, empty, Spectrum(torch.ones(80, 100), 12)], 2) == [1, 1, 0]


@dataclass(frozen=True)
class Spectrum:
    values: Tensor
    frames: int


class TestEncoding:
    @pytest.mark.parametrize("size", [2, 3])
    @pytest.mark.parametrize("lengths", [(5,), (1, 9, 4, 4, 2), (3, 3)])
    def test_every_rank_has_all_rows_in_order(self, lengths: tuple[int, ...], size: int) -> None:
        pictures = [pixels(n, float(i + 1)) for i, n in enumerate(lengths)]

        def encode(ranks: ThreadRanks) -> tuple[list[Tensor], list[int]]:
            encoder = Counting()
            return shared(encoder, ranks).encode(seen_by(ranks.rank, pictures, size)), encoder.encoded

        made = on_each(size, encode)
        assert sorted(n for _, encoded in made for n in encoded) == sorted(lengths)  # each by one rank alone
        for rows, _ in made:
            assert [row.tolist() for row in rows] == [picture.values[:, :3].tolist() for picture in pictures]
            assert len({row.untyped_storage().data_ptr() for row in rows}) == len(rows)

    def test_nothing_to_encode(self) -> None:
        assert on_each(2, lambda ranks: shared(Counting(), ranks).encode([])) == [[], []]

    def test_a_failure_on_one_rank_is_every_rank_s_and_the_next_step_goes_on(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        bad, good = [pixels(4), pixels(3, 7.0)], [pixels(2), pixels(1)]

        def encode(ranks: ThreadRanks) -> list[Tensor]:
            encoder = shared(Counting(), ranks)
            with pytest.raises(EncodingFailed, match="1 of 2"):
                encoder.encode(seen_by(ranks.rank, bad, 2))
            return encoder.encode(seen_by(ranks.rank, good, 2))

        assert [[len(row) for row in rows] for rows in on_each(2, encode)] == [[2, 1], [2, 1]]
        assert "seven" in caplog.text

    def test_a_family_s_rows_are_those_of_one_process(self, tmp_path: Path) -> None:
        checkpoint = resolve(tiny_qwen2_vl(tmp_path))
        encoder = build_model(checkpoint, torch.float32, CPU).encoder
        assert encoder is not None
        generator = torch.Generator().manual_seed(0)
        grids = [Grid(1, 4, 6), Grid(1, 2, 2), Grid(1, 8, 4)]
        pictures = [Pixels(torch.randn(g.h * g.w, 1176, generator=generator), g) for g in grids]
        expected = encoder.encode(pictures)

        def encode(ranks: ThreadRanks) -> list[Tensor]:
            model = build_model(checkpoint, torch.float32, CPU, ranks)
            assert model.encoder is not None
            return model.encoder.encode(seen_by(ranks.rank, pictures, 2))

        for rows in on_each(2, encode):
            for made, right in zip(rows, expected, strict=True):
                torch.testing.assert_close(made, right, rtol=1e-4, atol=1e-5)
