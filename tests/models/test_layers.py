"""What picture rows may carry besides an embedding, and layers of a family's own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from kernels.attention import plan_attention
from mmserve.errors import CheckpointError
from mmserve.models.batch import ForwardBatch
from mmserve.models.experts import Experts
from mmserve.models.layers import DecoderConfig, DecoderLayer, DecoderStack, StepTables
from mmserve.models.loader import materialise
from mmserve.models.rope import RopeConfig

CONFIG = DecoderConfig(50, 16, 24, 3, 2, 1, 8, 1e-6, RopeConfig(10_000.0, (4,)), True, False)
PLACES = torch.tensor([2, 3, 4])


def stack(config: DecoderConfig, make_layer: type[DecoderLayer] = DecoderLayer) -> DecoderStack:
    decoder = DecoderStack(config, make_layer)
    materialise(decoder, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in decoder.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return decoder


@torch.inference_mode()
def logits(decoder: DecoderStack, rows: Tensor | None, tokens: int = 7) -> Tensor:
    slots = torch.arange(tokens)
    caches = [[torch.zeros(tokens, 1, 8) for _ in range(3)] for _ in range(2)]
    batch = ForwardBatch(
        input_ids=torch.arange(tokens),
        positions=torch.arange(tokens)[None],
        slots=slots,
        attention=plan_attention([slots], [tokens], "cpu"),
        logits_index=torch.tensor([tokens - 1]),
        media_rows=rows,
        media_index=None if rows is None else PLACES,
    )
    return decoder.forward(batch, *caches)


class Watched(DecoderLayer):
    """A layer that keeps what it was told of experts, and what it was given."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.seen: list[tuple[Experts | None, Tensor]] = []

    def forward(  # type: ignore[no-untyped-def]
        self, x: Tensor, residual: Tensor | None, step: StepTables, *rest, **others
    ) -> tuple[Tensor, Tensor]:
        self.seen.append((step.experts, x if residual is None else x + residual))
        return super().forward(x, residual, step, *rest, **others)


def watched(layers: nn.ModuleList) -> list[tuple[Experts | None, Tensor]]:
    return [layer.seen[-1] for layer in layers if isinstance(layer, Watched)]


def test_deepstack_features_are_added_behind_the_first_layers() -> None:
    config = dataclasses.replace(CONFIG, deepstack=2)
    decoder = stack(config, Watched)
    assert decoder.row_width == 48
    rows = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    nothing = torch.cat((rows[:, :16], torch.zeros(3, 32)), 1)
    plain = logits(decoder, nothing)
    before = watched(decoder.layers)
    assert not torch.equal(logits(decoder, rows), plain)
    after = watched(decoder.layers)
    added = torch.zeros(7, 16).index_copy_(0, PLACES, rows[:, 16:32])
    torch.testing.assert_close(after[1][1], before[1][1] + added)
    torch.testing.assert_close(after[0][1], before[0][1])
    assert torch.equal(logits(stack(CONFIG), rows[:, :16]), plain)


def test_every_layer_may_not_take_features() -> None:
    with pytest.raises(CheckpointError, match="3 layers, and 3 take features"):
        DecoderStack(dataclasses.replace(CONFIG, deepstack=3))


def test_experts_are_told_which_tokens_are_theirs() -> None:
    decoder = stack(dataclasses.replace(CONFIG, marks_experts=True), Watched)
    assert decoder.row_width == 17
    rows = torch.cat((torch.randn(3, 16), torch.tensor([[1.0], [1.0], [0.0]])), 1)
    logits(decoder, rows)
    for experts, _ in watched(decoder.layers):
        assert experts is not None
        assert experts.mask.tolist() == [False, False, True, True, False, False, False]
    logits(decoder, None)
    assert all(experts is None for experts, _ in watched(decoder.layers))
