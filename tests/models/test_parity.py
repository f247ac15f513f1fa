"""The decoder and the picture encoder against transformers: the same logits, the same greedy tokens."""

from __future__ import annotations

import random

import pytest
import torch

from mmserve.checkpoint import Checkpoint
from mmserve.models.batch import Decoder, Model
from mmserve.models.families import build_model
from mmserve.types import Grid
from tests.models.reference import Paged, Progress, Reference, Transformers
from vision.pixels import Pixels

ATOL = 5e-5  # logits are of order 1 to 10


@pytest.fixture(scope="module")
def references(checkpoint: Checkpoint) -> list[Reference]:
    """Prompts with 0, 1, 2 and 3 pictures, twice."""
    transformers = Transformers(checkpoint.path)
    return [transformers.answer(i % 4, seed=i) for i in range(8)]


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Model:
    return build_model(checkpoint, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def decoder(model: Model) -> Decoder:
    return model.decoder


@pytest.mark.parametrize("number", range(8))
def test_logits_with_our_picture_rows(number: int, model: Model, references: list[Reference]) -> None:
    decoder, encoder = model.decoder, model.encoder
    assert encoder is not None
    reference = references[number]
    rows = reference.rows
    if reference.pixel_values is not None:
        grids = [Grid(*grid) for grid in reference.grids]
        cut = torch.split(reference.pixel_values, [grid.h * grid.w for grid in grids])
        rows = torch.cat(encoder.encode([Pixels(values, grid) for values, grid in zip(cut, grids, strict=True)]))
        torch.testing.assert_close(rows, reference.rows, atol=ATOL, rtol=0)
    progress = Progress(reference, rows)
    (logits,) = Paged(decoder).step([(progress, progress.left)], every_row=True)
    torch.testing.assert_close(logits, reference.logits, atol=ATOL, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_logits_of_prompts_cut_anywhere(seed: int, decoder: Decoder, references: list[Reference]) -> None:
    """Chunks of random length end inside pictures too; each is computed behind those before it."""
    choose = random.Random(seed)
    reference = references[3 if seed % 2 else 7]
    paged, progress, logits = Paged(decoder, seed=seed), Progress(reference), []
    while progress.left:
        chunk = min(progress.left, choose.choice([1, 2, 7, 19, 40]))
        logits += paged.step([(progress, chunk)], every_row=True)
    torch.testing.assert_close(torch.cat(logits), reference.logits, atol=ATOL, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_logits_of_prompts_run_together(seed: int, decoder: Decoder, references: list[Reference]) -> None:
    """Prefill chunks of unlike length, starting at different steps, in one shared cache."""
    choose = random.Random(seed)
    paged = Paged(decoder, seed=seed)
    pairs = [(Progress(reference), reference) for reference in references]
    while waiting := [pair for pair in pairs if pair[0].left]:
        taken = choose.sample(waiting, choose.randint(1, len(waiting)))
        chunks = [(progress, min(progress.left, choose.randint(1, 40))) for progress, _ in taken]
        for logits, (progress, reference) in zip(paged.step(chunks), taken, strict=True):
            torch.testing.assert_close(logits[0], reference.logits[progress.done - 1], atol=ATOL, rtol=0)


@pytest.mark.parametrize("number", range(8))
def test_greedy_tokens_alone(number: int, decoder: Decoder, references: list[Reference]) -> None:
    reference = references[number]
    assert len(reference.generated) == 20
    paged, progress = Paged(decoder), Progress(reference)
    tokens: list[int] = []
    while len(tokens) < 20:
        (logits,) = paged.step([(progress, progress.left)])
        tokens.append(int(logits.argmax()))
        progress.append(tokens[-1])
    assert tokens == reference.generated


def test_greedy_tokens_in_a_batch_that_others_join(decoder: Decoder, references: list[Reference]) -> None:
    """Decodes and prefill chunks share steps; a new sequence joins every second step."""
    paged = Paged(decoder, seed=1)
    progresses = [Progress(reference) for reference in references]
    tokens: list[list[int]] = [[] for _ in references]
    step = 0
    while any(len(own) < 20 for own in tokens):
        step += 1
        running = [i for i in range(min(len(references), 1 + step // 2)) if len(tokens[i]) < 20]
        chunks = [(progresses[i], min(progresses[i].left, 16)) for i in running]
        for i, logits in zip(running, paged.step(chunks), strict=True):
            if not progresses[i].left:
                tokens[i].append(int(logits.argmax()))
                progresses[i].append(tokens[i][-1])
    assert tokens == [reference.generated for reference in references]


def test_a_step_that_wants_no_logits(decoder: Decoder, references: list[Reference]) -> None:
    """As for a prefill chunk that is not the last; what it stores serves the next one."""
    reference = references[0]
    paged, progress = Paged(decoder), Progress(reference)
    paged.step([(progress, 5)])
    (logits,) = paged.step([(progress, progress.left)])
    torch.testing.assert_close(logits[0], reference.logits[-1], atol=ATOL, rtol=0)


def test_bfloat16_stays_near_float32(checkpoint: Checkpoint, references: list[Reference]) -> None:
    decoder = build_model(checkpoint, torch.bfloat16, torch.device("cpu")).decoder
    reference = references[0]
    paged = Paged(decoder)
    paged.k, paged.v = ([cache.bfloat16() for cache in caches] for caches in (paged.k, paged.v))
    progress = Progress(reference)
    (logits,) = paged.step([(progress, progress.left)], every_row=True)
    assert logits.dtype == torch.float32
    relative = (logits - reference.logits).norm() / reference.logits.norm()
    assert relative < 0.05
