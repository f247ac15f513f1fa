"""The towers of Qwen2.5-VL and Qwen3-VL: rows as transformers makes them, and the parts that they are made of."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from mmserve.errors import ConfigError
from mmserve.models.loader import load_weights
from mmserve.types import Grid
from tests.checkpoints import QWEN_VLS, tiny_qwen_vl
from tests.models.equality import resolve
from tests.vision.files import noise
from vision.geometry import QwenGeometry
from vision.pixels import Pixels, QwenPixels
from vision.projectors import PatchMerger
from vision.qwen2_5_vl import Qwen25VLEncoder, rename_qwen2_5_vl, window_order
from vision.qwen3_vl import Qwen3VLEncoder, rename_qwen3_vl
from vision.qwen_tower import TowerShape, by_blocks, layer_numbers, patch_positions, rope_tables, runs_of

SIZES = [(50, 90), (333, 250), (28, 28), (200, 200), (900, 5)]
SHAPE = TowerShape(2, 32, 64, 2, 64, 3, 14, 2, 2, 10_000.0)
RENAMES = {"qwen2.5-vl": rename_qwen2_5_vl, "qwen3-vl": rename_qwen3_vl}
Encoder = Qwen25VLEncoder | Qwen3VLEncoder


def loaded(path: Path, kind: str, dtype: torch.dtype = torch.float32) -> Encoder:
    vision_config = resolve(path).vision_config
    encoder = Qwen3VLEncoder(vision_config) if kind == "qwen3-vl" else Qwen25VLEncoder(vision_config)
    load_weights(encoder, path, RENAMES[kind], dtype=dtype, device="cpu")
    return encoder


@pytest.fixture(scope="module", params=QWEN_VLS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def path(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_vl(tmp_path_factory.mktemp("tower") / "tiny", kind)


@pytest.fixture(scope="module")
def encoder(path: Path, kind: str) -> Encoder:
    return loaded(path, kind)


@pytest.fixture(scope="module")
def pictures(path: Path) -> list[Pixels]:
    checkpoint = resolve(path)
    geometry = QwenGeometry.from_configs(checkpoint.vision_config, checkpoint.processor)
    pixels = QwenPixels(path, geometry)
    return [pixels(noise(*size, seed=seed), geometry.grid(*size)) for seed, size in enumerate(SIZES)]


def test_rows_are_those_of_transformers(path: Path, encoder: Encoder, pictures: list[Pixels]) -> None:
    reference: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    patches, grids = torch.cat([each.values for each in pictures]), torch.tensor([each.grid for each in pictures])
    with torch.inference_mode():
        found = reference.model.get_image_features(patches, grids)
    features = [torch.cat(tuple(layer)) for layer in getattr(found, "deepstack_features", None) or []]
    expected = torch.cat([torch.cat(tuple(found.pooler_output)), *features], 1)
    rows = encoder.encode(pictures)
    assert [len(part) for part in rows] == [each.grid.h * each.grid.w // 4 for each in pictures]
    assert encoder.row_width == expected.shape[1]
    assert expected.std() > 0.1
    torch.testing.assert_close(torch.cat(rows), expected, atol=1e-4, rtol=0)


def test_a_picture_gives_the_same_rows_alone_and_among_others(encoder: Encoder, pictures: list[Pixels]) -> None:
    for picture, rows in zip(pictures, encoder.encode(pictures), strict=True):
        torch.testing.assert_close(encoder.encode([picture])[0], rows, atol=2e-5, rtol=0)


def test_equal_patches_with_other_grids_give_other_rows(encoder: Encoder, pictures: list[Pixels]) -> None:
    width = pictures[0].values.shape[1]
    tiles = torch.randn(16 * 4, width, generator=torch.Generator().manual_seed(0))
    rows = [encoder.encode([Pixels(tiles, Grid(1, *shape))])[0] for shape in ((4, 16), (8, 8), (16, 4))]
    assert all(not torch.allclose(one, other, atol=1e-3) for one, other in pairwise(rows))


def test_each_pictures_rows_own_their_memory(encoder: Encoder, pictures: list[Pixels]) -> None:
    for chosen in (pictures, pictures[:1]):
        rows = encoder.encode(chosen)
        assert [part.untyped_storage().nbytes() for part in rows] == [part.nbytes for part in rows]


def test_nothing_in_nothing_out_and_counts_must_agree(encoder: Encoder, pictures: list[Pixels]) -> None:
    assert encoder.encode([]) == []
    with pytest.raises(ValueError, match="16 patches, but 12 were given"):
        encoder.encode([Pixels(torch.zeros(12, pictures[0].values.shape[1]), Grid(1, 4, 4))])


def test_bfloat16_stays_near_float32(path: Path, kind: str, encoder: Encoder, pictures: list[Pixels]) -> None:
    (rows,), (exact,) = loaded(path, kind, torch.bfloat16).encode(pictures[1:2]), encoder.encode(pictures[1:2])
    assert rows.dtype == torch.bfloat16
    assert (rows.float() - exact).norm() < 0.05 * exact.norm()


def test_parameters_take_no_memory_before_they_are_loaded_and_each_has_a_published_name(path: Path, kind: str) -> None:
    vision_config = resolve(path).vision_config
    empty = Qwen3VLEncoder(vision_config) if kind == "qwen3-vl" else Qwen25VLEncoder(vision_config)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    names = [RENAMES[kind](name) for name in load_file(path / "model.safetensors")]
    assert sorted(filter(None, names)) == sorted(name for name, _ in empty.named_parameters())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3), st.integers(1, 5))
def test_windows_are_the_squares_of_a_lattice(blocks: list[tuple[int, int]], window: int) -> None:
    order, runs = window_order([Grid(1, 2 * h, 2 * w) for h, w in blocks], SHAPE, window)
    expected: list[frozenset[int]] = []
    at = 0
    for height, width in blocks:
        squares: dict[tuple[int, int], set[int]] = defaultdict(set)
        for row in range(height):
            for column in range(width):
                squares[row // window, column // window].add(at)
                at += 1
        expected += map(frozenset, squares.values())
    found, left = [], order.tolist()
    for count, length in runs:
        assert length % 4 == 0
        for _ in range(count):
            found.append(frozenset(left[: length // 4]))
            left = left[length // 4 :]
    assert not left
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


def test_windows_of_one_size_are_computed_together() -> None:
    _, runs = window_order([Grid(1, 14, 10)], SHAPE, 2)  # 7 by 5 blocks
    assert runs == [(1, 4), (2 + 3, 8), (6, 16)]


def test_runs_join_equal_neighbours_only() -> None:
    assert runs_of([4, 4, 8, 4]) == [(2, 4), (1, 8), (1, 4)]


def test_patches_come_block_by_block() -> None:
    plane = torch.arange(24).view(4, 6)
    assert by_blocks(plane, 2).tolist() == [
        *[0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11],
        *[12, 13, 18, 19, 14, 15, 20, 21, 16, 17, 22, 23],
    ]
    assert by_blocks(plane, 1).tolist() == list(range(24))
    rows, columns = patch_positions([Grid(1, 4, 6), Grid(1, 2, 2)], 2)
    assert (rows[:24] * 6 + columns[:24]).tolist() == by_blocks(plane, 2).tolist()
    assert (rows[24:].tolist(), columns[24:].tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])


def test_half_of_a_head_turns_with_the_row_and_half_with_the_column() -> None:
    sizes = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_heads": 2,
        "out_hidden_size": 8,
        "patch_size": 14,
    }
    shape = TowerShape.read({**sizes, "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0}})
    assert shape.head_dim == 8
    assert TowerShape.read(sizes).rope_theta == 10_000.0
    cos, sin = rope_tables(torch.tensor([[3], [5]]), shape)
    angles = torch.tensor([3.0, 0.3, 5.0, 0.5])
    torch.testing.assert_close(cos[0, 0], angles.cos().repeat(2))
    torch.testing.assert_close(sin[0, 0, 4:], angles.sin())


def test_learned_positions_are_kept_where_the_grid_is_theirs() -> None:
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 8}
    encoder = Qwen3VLEncoder(
        {**vision, "patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": []}
    )
    table = torch.randn(16, 8)
    encoder.pos_embed.weight = nn.Parameter(table, requires_grad=False)
    torch.testing.assert_close(encoder._positions(Grid(1, 4, 4)), by_blocks(table.view(4, 4, 8), 2))
    corners: Tensor = encoder._positions(Grid(1, 2, 2))
    torch.testing.assert_close(corners, table[[0, 3, 12, 15]])


def test_a_merger_may_norm_whole_blocks() -> None:
    merger = PatchMerger(2, 3, 2, norm_blocks=True)
    features = torch.randn(8, 2)
    expected = [merger.fc2(merger.act(merger.fc1(merger.norm(features[at : at + 4].flatten())))) for at in (0, 4)]
    torch.testing.assert_close(merger(features), torch.stack(expected))


@pytest.mark.parametrize(
    ("name", "qwen2_5", "qwen3"),
    [
        ("visual.blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.bias"),
        ("model.visual.patch_embed.proj.weight", "patch_embed.proj.weight", "patch_embed.proj.weight"),
        ("visual.merger.ln_q.weight", "merger.norm.weight", "merger.ln_q.weight"),
        ("model.visual.merger.mlp.2.bias", "merger.fc2.bias", "merger.mlp.2.bias"),
        ("model.visual.merger.linear_fc1.bias", "merger.linear_fc1.bias", "merger.fc1.bias"),
        (
            "visual.deepstack_merger_list.1.linear_fc2.weight",
            "deepstack_merger_list.1.linear_fc2.weight",
            "deepstack_merger_list.1.fc2.weight",
        ),
        ("model.visual.blocks.0.mlp.linear_fc1.bias", "blocks.0.mlp.linear_fc1.bias", "blocks.0.mlp.linear_fc1.bias"),
        ("model.language_model.norm.weight", None, None),
        ("lm_head.weight", None, None),
    ],
)
def test_names(name: str, qwen2_5: str | None, qwen3: str | None) -> None:
    assert rename_qwen2_5_vl(name) == qwen2_5
    assert rename_qwen3_vl(name) == qwen3


@pytest.mark.parametrize("value", [None, 1, [1, 1], [2], [-1], ["0"]])
def test_layers_are_listed_once_and_are_there(value: object) -> None:
    assert layer_numbers({"layers": [1, 0]}, "layers", 2) == (1, 0)
    with pytest.raises(ConfigError, match="layers must list some of the tower's 2 layers once, got"):
        layer_numbers({"layers": value}, "layers", 2)
