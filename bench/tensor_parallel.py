"""The decode step of a 7B decoder on one GPU and on several that share it (--tp), and the floor of both.

Qwen2-VL-7B's language model, its weights random: the time of a step does not depend on them. The floor is what the
memory alone takes to read a rank's weights and the keys and values of the contexts once, at the bandwidth that a copy
on the same device reaches. What is timed is the decoder's part of a step, from token ids on the device to logits.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.attention import plan_attention
from mmserve.engine.parallel.group import ProcessRanks
from mmserve.models.batch import ForwardBatch
from mmserve.models.layers import DecoderConfig, DecoderStack
from mmserve.models.loader import materialise
from mmserve.models.ranks import ALONE, Ranks
from mmserve.models.rope import RopeConfig

SEVEN_B = DecoderConfig(
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope=RopeConfig(1_000_000.0, (16, 24, 24)),
    qkv_bias=True,
    tie_word_embeddings=False,
)
TINY = dataclasses.replace(
    SEVEN_B,
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
)
TINY = dataclasses.replace(TINY, rope=RopeConfig(10_000.0, (2, 3, 3)))


@dataclass(frozen=True, slots=True)
class Work:
    """A decode step of ``sequences``, each with ``context`` tokens; ``rounds`` of it are timed."""

    sequences: int
    context: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of a step: the median; and of reading what a rank must read, at the device's own bandwidth."""

    step: float
    floor: float
    bytes_read: int


def measure(config: DecoderConfig, work: Work, device: torch.device, ranks: Ranks = ALONE) -> Measured:
    """On this rank; every rank must call it."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    decoder = DecoderStack(dataclasses.replace(config, ranks=ranks))
    materialise(decoder, dtype=dtype, device=device)
    for parameter in decoder.parameters():
        parameter.normal_(std=0.02)
    slots = work.sequences * work.context
    shape = (slots, decoder.num_kv_heads, decoder.head_dim)
    caches = [[torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)] for _ in range(2)]
    batch = _decode(work, device, dtype)
    with torch.inference_mode():
        step = _median(lambda: decoder.forward(batch, *caches), device, work.rounds)
    weights = [each for name, each in decoder.named_parameters() if not name.startswith("embed_tokens")]
    read = sum(each.numel() * each.element_size() for each in weights)
    read += sum(each.numel() * each.element_size() for cache in caches for each in cache)
    return Measured(step, read / bandwidth(device), read)


def _decode(work: Work, device: torch.device, dtype: torch.dtype) -> ForwardBatch:
    slots = [torch.arange(i * work.context, (i + 1) * work.context) for i in range(work.sequences)]
    one = torch.ones(work.sequences, dtype=torch.int64, device=device)
    return ForwardBatch(
        input_ids=one * 7,
        positions=(one * (work.context - 1)).expand(3, -1),
        slots=torch.stack([each[-1] for each in slots]).to(device),
        attention=plan_attention(slots, [1] * work.sequences, device, dtype),
        logits_index=torch.arange(work.sequences, device=device),
    )


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes on this device."""
    size = 1 << (31 if device.type == "cuda" else 24)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> Tensor:
        return target.copy_(source)

    return 2 * size / _median(copy, device, 20)


def _median(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    times = []
    for i in range(rounds + 3):
        _finish(device)
        started = time.perf_counter()
        work()
        _finish(device)
        if i >= 3:
            times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rank(rank: int, size: int, folder: str, config: DecoderConfig, work: Work, kind: str) -> Measured:
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return measure(config, work, device, ProcessRanks(rank, size, Path(folder), device))


def measure_shared(size: int, config: DecoderConfig, work: Work, kind: str) -> Measured:
    """Rank 0's times where ``size`` processes share the decoder."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        others = [
            context.Process(target=_rank, args=(rank, size, folder, config, work, kind), daemon=True)
            for rank in range(1, size)
        ]
        for other in others:
            other.start()
        measured = _rank(0, size, folder, config, work, kind)
        for other in others:
            other.join()
    return measured


def report(found: dict[int, Measured], work: Work) -> str:
    lines = [f"{work.sequences} sequences of {work.context} tokens, median of {work.rounds} steps"]
    lines.append("  GPUs    step ms    floor ms    step / floor    GB read a rank    times faster than one")
    for size, each in found.items():
        faster = f"{found[1].step / each.step:.2f}" if 1 in found else "-"
        times = f"{1e3 * each.step:<11.2f}{1e3 * each.floor:<12.2f}{each.step / each.floor:<16.2f}"
        lines.append(f"  {size:<8}{times}{each.bytes_read / 1e9:<18.2f}{faster}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2], help="how many share it (1 2)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a very small decoder, to see that it runs")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16, 64], help="in a step (1 16 64)")
    parser.add_argument("--context", type=int, default=1024, help="tokens of each (%(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="steps timed (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and torch.cuda.device_count() < max(arguments.tp):
        print(f"--tp {max(arguments.tp)} takes as many GPUs; torch sees {torch.cuda.device_count()}", file=sys.stderr)
        return 1
    config = TINY if arguments.tiny else SEVEN_B
    for sequences in arguments.sequences:
        work = Work(sequences, arguments.context, arguments.rounds)
        found = {}
        for size in arguments.tp:
            alone = size == 1
            device = torch.device(arguments.device)
            found[size] = (
                measure(config, work, device) if alone else measure_shared(size, config, work, arguments.device)
            )
        print(report(found, work), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
