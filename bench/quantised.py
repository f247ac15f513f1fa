"""What rounding the decoder's weights to eight bits costs in quality and saves in memory.

Both models are given the same prompts and the right answers behind them (teacher forcing), and their next-token
distributions are compared: KL divergence from the exact model's, and how often the likeliest token is the same. The
embedded model answers easy-vqa; the random one, whose weights are Gaussian as a trained layer's roughly are, has no
answers, so that every position counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kernels.attention import plan_attention
from mmserve.checkpoint import QUANTIZATIONS, Checkpoint
from mmserve.config import Limits
from mmserve.models.batch import ForwardBatch, Model
from mmserve.models.families import build_model
from mmserve.prompt import PromptBuilder, layout_for
from mmserve.registry import load_registry
from mmserve.types import ImagePart, Message, Prompt, TextPart
from vision.decode import decode


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt with a known answer behind it; what is compared begins at position ``start``."""

    prompt: Prompt
    start: int


@dataclass(frozen=True, slots=True)
class Loss:
    """Over ``positions`` next tokens: KL divergence in nats, and the share whose likeliest is the same."""

    positions: int
    mean_kl: float
    p99_kl: float
    worst_kl: float
    agreement: float


@torch.inference_mode()
def logits_of(model: Model, checkpoint: Checkpoint, case: Case) -> Tensor:
    """Float32 ``(positions, V)``: what the model expects behind each position from ``start`` to the last but one."""
    decoder, prompt = model.decoder, case.prompt
    count = len(prompt)
    weight = next(iter(decoder.parameters())) if isinstance(decoder, nn.Module) else torch.empty(0)
    shape = (count, decoder.num_kv_heads, decoder.head_dim)
    caches = [[torch.zeros(shape, dtype=weight.dtype) for _ in range(decoder.num_layers)] for _ in range(2)]
    rows, index = None, None
    if prompt.pictures:
        assert model.pixels is not None
        assert model.encoder is not None
        pixels = [model.pixels(decode(each.data, each.header), each.grid) for each in prompt.pictures]
        rows = torch.cat(model.encoder.encode(pixels))
        index = torch.from_numpy(np.concatenate([np.arange(start, end) for start, end, _ in prompt.ranges]))
    slots = torch.arange(count)
    batch = ForwardBatch(
        input_ids=torch.from_numpy(prompt.token_ids.copy()),
        positions=torch.from_numpy(layout_for(checkpoint).positions(prompt)[0]),
        slots=slots,
        attention=plan_attention([slots], [count], "cpu", weight.dtype),
        logits_index=torch.arange(case.start, count - 1),
        media_rows=rows,
        media_index=index,
    )
    return decoder.forward(batch, *caches)


def loss(exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> Loss:
    """Of logits ``(positions, V)``, prompt by prompt."""
    expected, found = torch.cat(list(exact)).double().log_softmax(-1), torch.cat(list(rounded)).double().log_softmax(-1)
    kl = (expected.exp() * (expected - found)).sum(-1)
    same = (expected.argmax(-1) == found.argmax(-1)).double().mean()
    return Loss(len(kl), float(kl.mean()), float(kl.quantile(0.99)), float(kl.max()), float(same))


def decoder_bytes(model: Model) -> int:
    """Bytes of the decoder's parameters and buffers."""
    decoder = model.decoder
    assert isinstance(decoder, nn.Module)
    return sum(each.numel() * each.element_size() for each in (*decoder.parameters(), *decoder.buffers()))


def layer_bytes(model: Model) -> int:
    """Bytes of the decoder's layers: what quantisation makes smaller."""
    layers = model.decoder.layers  # type: ignore[attr-defined]
    return sum(each.numel() * each.element_size() for each in (*layers.parameters(), *layers.buffers()))


def load(checkpoint: Checkpoint, quantization: str | None, dtype: torch.dtype = torch.float32) -> Model:
    return build_model(dataclasses.replace(checkpoint, quantization=quantization), dtype, torch.device("cpu"))


def answered(checkpoint: Checkpoint, asked: Sequence[tuple[Path, str, str]]) -> list[Case]:
    """Questions about pictures, with their right answers; compared where the answers are chosen."""
    builder, cases = PromptBuilder(checkpoint, Limits()), []
    for picture, question, answer in asked:
        prompt = builder.build([Message("user", (ImagePart(picture.read_bytes()), TextPart(question)))])
        cases.append(Case(builder.append_text(prompt, answer, end=True), len(prompt) - 1))
    return cases


def spoken(checkpoint: Checkpoint, texts: Sequence[str]) -> list[Case]:
    """Texts as they stand, compared at every position."""
    builder = PromptBuilder(checkpoint, Limits())
    return [Case(builder.build([Message("user", (TextPart(text),))]), 0) for text in texts]


def measure(checkpoint: Checkpoint, cases: Sequence[Case]) -> dict[str, tuple[Loss, int, int]]:
    """For each kind: the loss against float32, and the bytes of decoder and of its layers where the rest is bfloat16;
    under ``none`` the bytes of bfloat16 alone."""
    exact_model = load(checkpoint, None)
    exact = [logits_of(exact_model, checkpoint, case) for case in cases]
    found = {}
    for kind in (None, *QUANTIZATIONS):
        rounded = load(checkpoint, kind)
        small = load(checkpoint, kind, torch.bfloat16)
        compared = loss(exact, [logits_of(rounded, checkpoint, case) for case in cases])
        found[kind or "none"] = (compared, decoder_bytes(small), layer_bytes(small))
    bfloat16 = load(checkpoint, None, torch.bfloat16)
    compared = loss(exact, [logits_of(bfloat16, checkpoint, case) for case in cases])
    return {"bfloat16": (compared, *found.pop("none")[1:]), **found}


def _embedded(count: int) -> tuple[Checkpoint, list[Case]]:
    from bench.easy_vqa import questions

    checkpoint = load_registry().resolve("pocket-vl")
    return checkpoint, answered(checkpoint, [(each.picture, each.text, each.answer) for each in questions(count)])


def _random(count: int, folder: Path) -> tuple[Checkpoint, list[Case]]:
    from tests.checkpoints import tiny_text

    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    path = tiny_text(folder / "random", "llama", **shape)
    checkpoint = load_registry().resolve(str(path))
    return checkpoint, spoken(
        checkpoint, [f"What are {i} and {7 * i}? Say it in your own words." for i in range(count)]
    )


def report(name: str, found: dict[str, tuple[Loss, int, int]]) -> str:
    lines = [f"{name}: {found['bfloat16'][0].positions} positions, against float32"]
    lines.append("  weights    mean KL    p99 KL     worst KL   same best token   decoder MB   its layers MB")
    for kind, (compared, whole, layers) in found.items():
        kls = "".join(f"{value:<11.2e}" for value in (compared.mean_kl, compared.p99_kl, compared.worst_kl))
        size = f"{whole / 1e6:<13.2f}{layers / 1e6:.2f}"
        lines.append(f"  {kind:<11}{kls}{100 * compared.agreement:<18.2f}{size}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=500, help="of easy-vqa's test split (%(default)s)")
    parser.add_argument("--texts", type=int, default=50, help="for the random model (%(default)s)")
    arguments = parser.parse_args()
    sets: list[tuple[str, Callable[[Path], tuple[Checkpoint, list[Case]]]]] = [
        ("pocket-vl on easy-vqa", lambda _: _embedded(arguments.questions)),
        ("random Llama, 8 layers of 512", lambda folder: _random(arguments.texts, folder)),
    ]
    for name, made in sets:
        with tempfile.TemporaryDirectory() as folder:
            print(report(name, measure(*made(Path(folder)))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
