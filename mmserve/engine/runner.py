"""Runner: the only owner of the device. Executes plans; decides nothing.

Owns the weights, the KV cache's memory, prepared media and their embedding rows (keyed by content, forgotten when the
plan says so). Torch backend: plain ops, no graphs.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kernels.attention import plan_attention
from mmserve.cache.costs import StepTimes
from mmserve.cache.host import FileStore, HostStore, PinnedStore
from mmserve.cache.kv import KVCache
from mmserve.checkpoint import QUANTIZATIONS, Checkpoint
from mmserve.config import EngineConfig
from mmserve.engine.plan import Chunk, SchedulerOutput
from mmserve.engine.room import LEAST_SLOTS, check_room
from mmserve.engine.sampler import Allowed, RowLogprobs, sample, score
from mmserve.errors import ConfigError, UnsupportedMedia, UnsupportedPicture
from mmserve.models.batch import Decoder, ForwardBatch, MediaEncoder, Model
from mmserve.models.families import build_model
from mmserve.models.ranks import ALONE, Ranks
from mmserve.types import ContentHash, IntArray, MediaItem, MediaKind


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """A step up to its logits, float32 ``(B, V)``, which are ``None`` where there is nothing to choose or to score.

    ``damaged`` as in :class:`RunnerOutput`; the times in seconds are of fetching and encoding ``rows`` rows.
    """

    logits: Tensor | None
    damaged: frozenset[str]
    clock: _Clock
    fetch_seconds: float
    encode_seconds: float
    rows: int


@dataclass(frozen=True, slots=True)
class RunnerOutput:
    """What a step chose, by sequence: the token, and its log-probabilities where they were asked for.

    ``scores`` are the log-probabilities of known tokens where those were asked for, in order. ``damaged`` are the
    sequences for which the second tier could not give back what it should hold. ``times`` is set where there is a
    second tier.
    """

    tokens: dict[str, int]
    logprobs: dict[str, RowLogprobs | None]
    damaged: frozenset[str] = frozenset()
    times: StepTimes | None = None
    scores: dict[str, list[RowLogprobs]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What a media item was made into by the tower of its kind. Lies on the host."""

    kind: MediaKind
    values: Any


class Masks(Protocol):
    """Grammar masks on their way, filled while the model computes."""

    @property
    def sequence_ids(self) -> Sequence[str]:
        """Whose they are, in the order of their rows; all of them choose a token in this step."""

    def wait(self) -> Tensor:
        """The masks, int32 ``(N, ceil(V / 32))`` on the host (see ``kernels.mask``)."""


class _Clock:
    """Seconds between laps; on a GPU it waits for the device, so it only runs where somebody needs the times."""

    def __init__(self, device: torch.device, *, running: bool) -> None:
        self._device = device
        self._running = running
        self._last = time.perf_counter()

    def lap(self) -> float:
        if not self._running:
            return 0.0
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


class Runner:
    """One model on one device. ``execute`` belongs to the engine's thread; ``prepare`` may run in any."""

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        device: torch.device,
        tier: tuple[HostStore, int] | None = None,
    ) -> None:
        self._decoder = model.decoder
        self._towers = model.towers
        self._kv = kv
        self._device = device
        self._store: HostStore | None = tier[0] if tier else None
        self.tier_slots = tier[1] if tier else 0
        self._dtype = kv.keys[0].dtype
        self._prepared: dict[ContentHash, Prepared] = {}
        self._rows: dict[ContentHash, Tensor] = {}

    @property
    def num_slots(self) -> int:
        return len(self._kv.keys[0])

    @property
    def row_bytes(self) -> int:
        """Bytes of one media row."""
        return self._decoder.row_width * self._dtype.itemsize

    @property
    def vocab_size(self) -> int:
        """The number of logits."""
        return self._decoder.vocab_size

    def prepare(self, item: MediaItem) -> Prepared:
        """Decode a media item to what its tower takes. Thread safe. Raises ``MediaError``."""
        tower = self._towers.get(item.kind)
        if tower is None and not self._towers:
            raise UnsupportedPicture("this model reads text only: leave the pictures out, or ask a model that sees")
        if tower is None:
            raise UnsupportedMedia(f"this model takes {' and '.join(self._towers)} only, no {item.kind}")
        return Prepared(item.kind, tower.prepare(item))

    def put_prepared(self, content: ContentHash, prepared: Prepared) -> None:
        self._prepared[content] = prepared

    def by_encoder(
        self, media: Sequence[tuple[ContentHash, Prepared]]
    ) -> list[tuple[MediaEncoder[Any], list[tuple[ContentHash, Prepared]]]]:
        """What each encoder gets of prepared media; kinds may share one."""
        found: dict[int, tuple[MediaEncoder[Any], list[tuple[ContentHash, Prepared]]]] = {}
        for content, prepared in media:
            encoder = self._towers[prepared.kind].encoder
            found.setdefault(id(encoder), (encoder, []))[1].append((content, prepared))
        return list(found.values())

    @torch.inference_mode()
    def execute(self, plan: SchedulerOutput, masks: Masks | None = None) -> RunnerOutput:
        return self.choose(plan, self.compute(plan), masks)

    @torch.inference_mode()
    def compute(self, plan: SchedulerOutput) -> Computed:
        """All of a step but the choice of tokens: what every rank of a shared model does."""
        clock = _Clock(self._device, running=self._store is not None)
        damaged = self._move(plan)
        fetch_seconds = clock.lap()
        for content in plan.forget:
            self._rows.pop(content, None)
            self._prepared.pop(content, None)
        rows = self._encode(plan.encode) if plan.encode else 0
        encode_seconds = clock.lap()
        logits = None
        if plan.chunks:
            logits = self._decoder.forward(self._batch(plan.chunks), self._kv.keys, self._kv.values)
        return Computed(logits, damaged, clock, fetch_seconds, encode_seconds, rows)

    @torch.inference_mode()
    def choose(self, plan: SchedulerOutput, computed: Computed, masks: Masks | None = None) -> RunnerOutput:
        """The tokens and scores of a step that was computed."""
        tokens, logprobs, scores = self._choose(plan.chunks, computed.logits, masks)
        times = None
        if self._store is not None:
            count = sum(len(chunk.token_ids) for chunk in plan.chunks)
            fetched = sum(len(copy.source) for _, copy in plan.fetch)
            seconds = computed.fetch_seconds + computed.encode_seconds + computed.clock.lap()
            fetch_seconds = computed.fetch_seconds if fetched else 0.0
            times = StepTimes(seconds, count, fetch_seconds, fetched, computed.encode_seconds, computed.rows)
        return RunnerOutput(tokens, logprobs, computed.damaged, times, scores)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _choose(
        self, chunks: Sequence[Chunk], logits: Tensor | None, masks: Masks | None
    ) -> tuple[dict[str, int], dict[str, RowLogprobs | None], dict[str, list[RowLogprobs]]]:
        if logits is None:
            return {}, {}, {}
        rows = {chunk.sequence_id: chunk.row for chunk in chunks if chunk.row is not None}
        scores = self._score(logits[len(rows) :], chunks)
        if not rows:
            return {}, {}, scores
        allowed = None
        if masks is not None:
            place = {sequence_id: i for i, sequence_id in enumerate(rows)}
            index = np.array([place[sequence_id] for sequence_id in masks.sequence_ids], dtype=np.int64)
            allowed = Allowed(masks.wait().to(self._device, non_blocking=True), self._tensor(index))
        sampled = sample(logits[: len(rows)], list(rows.values()), allowed)
        tokens = dict(zip(rows, sampled.token_ids, strict=True))
        return tokens, dict(zip(rows, sampled.logprobs, strict=True)), scores

    def _score(self, logits: Tensor, chunks: Sequence[Chunk]) -> dict[str, list[RowLogprobs]]:
        scored = [(chunk, chunk.targets) for chunk in chunks if chunk.targets is not None]
        if not scored:
            return {}
        targets = self._tensor(np.concatenate([targets for _, targets in scored]))
        top = [chunk.top_logprobs for chunk, targets in scored for _ in targets]
        found = iter(score(logits, targets, top))
        return {chunk.sequence_id: list(islice(found, len(targets))) for chunk, targets in scored}

    def _move(self, plan: SchedulerOutput) -> frozenset[str]:
        """Copies between the tiers, saves first; returns the sequences whose fetch failed."""
        if self._store is None:
            return frozenset()
        for copy in plan.save:
            self._store.save(self._kv, copy.source, copy.target)
        return frozenset(
            sequence_id for sequence_id, copy in plan.fetch if not self._store.load(self._kv, copy.source, copy.target)
        )

    def _encode(self, contents: Sequence[ContentHash]) -> int:
        """Make and keep the rows of prepared media, those of one encoder together; returns how many."""
        made = 0
        for encoder, its in self.by_encoder([(content, self._prepared.pop(content)) for content in contents]):
            rows = encoder.encode([prepared.values for _, prepared in its])
            self._rows.update(zip((content for content, _ in its), rows, strict=True))
            made += sum(map(len, rows))
        return made

    def _batch(self, chunks: Sequence[Chunk]) -> ForwardBatch:
        lengths = [len(chunk.token_ids) for chunk in chunks]
        ends = np.cumsum(lengths, dtype=np.int64)
        # First the rows that choose a token, then those that score known ones.
        wanted = [int(end) - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.row is not None]
        for begin, chunk in zip((ends - lengths).tolist(), chunks, strict=True):
            wanted += range(begin + chunk.scored[0], begin + chunk.scored[1])
        new_slots = np.concatenate([chunk.slots[chunk.start :] for chunk in chunks])
        slots = [torch.from_numpy(chunk.slots) for chunk in chunks]
        rows, index = self._media_rows(chunks, (ends - lengths).tolist())
        return ForwardBatch(
            input_ids=self._tensor(np.concatenate([chunk.token_ids for chunk in chunks])),
            positions=self._tensor(np.concatenate([chunk.positions for chunk in chunks], axis=1)),
            slots=self._tensor(new_slots),
            attention=plan_attention(slots, lengths, self._device, self._dtype),
            logits_index=self._tensor(np.asarray(wanted, dtype=np.int64)),
            media_rows=rows,
            media_index=index,
        )

    def _media_rows(self, chunks: Sequence[Chunk], starts: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        rows, index = [], []
        for chunk, start in zip(chunks, starts, strict=True):
            for piece in chunk.media:
                rows.append(self._rows[piece.content][piece.first_row : piece.first_row + piece.count])
                index.append(np.arange(start + piece.at, start + piece.at + piece.count))
        if not rows:
            return None, None
        return torch.cat(rows), self._tensor(np.concatenate(index))

    def _tensor(self, array: IntArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def build_runner(
    checkpoint: Checkpoint,
    config: EngineConfig,
    ranks: Ranks = ALONE,
    agree: Callable[[int], int] = lambda slots: slots,
) -> Runner:
    """Load a checkpoint onto the device and size the KV cache. Raises ``ConfigError`` and ``CheckpointError``.

    Of a model that ``ranks`` share it makes this rank's runner; ``agree`` turns the number of KV slots that it could
    have into the number that all have.
    """
    checkpoint = pick_quantization(config.quantization, checkpoint)
    device = pick_device(config.device, ranks.rank)
    dtype = pick_dtype(config.dtype, device, checkpoint.dtype)
    check_room(checkpoint, config, dtype, device)
    model = build_model(checkpoint, dtype=dtype, device=device, ranks=ranks)
    decoder = model.decoder
    slots = agree(count_slots(decoder, config, dtype, device, checkpoint.max_model_len))
    kv = KVCache(decoder.num_layers, slots, decoder.num_kv_heads, decoder.head_dim, dtype, device)
    return Runner(model, kv, device, _second_tier(config, kv))


def _second_tier(config: EngineConfig, kv: KVCache) -> tuple[HostStore, int] | None:
    layers, _, kv_heads, head_dim = kv.slot_shape
    slots = config.tier_bytes // config.tp_size // KVCache.bytes_per_slot(layers, kv_heads, head_dim, kv.keys[0].dtype)
    if not slots:
        return None
    if kv.keys[0].is_cuda:
        return PinnedStore(kv, slots), slots
    return FileStore(kv, slots, Path(config.tier_folder) if config.tier_folder else None), slots


def pick_device(name: str, rank: int = 0) -> torch.device:
    """The device ``name``, or on CUDA the one that is ``rank`` further. Raises ``ConfigError`` where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name!r}; use cpu, cuda or cuda:N", param="device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but torch sees no CUDA device; use --device cpu", param="device")
    if device.type == "cuda" and rank:
        return torch.device("cuda", (device.index or 0) + rank)
    return device


def pick_dtype(name: str, device: torch.device, stored: str) -> torch.dtype:
    """``auto`` is float32 on a CPU, where smaller types are slow, and the ``stored`` weights' own on a GPU."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else stored
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype must be auto, float32, bfloat16 or float16, not {name!r}", param="dtype")
    return dtype


def pick_quantization(name: str, checkpoint: Checkpoint) -> Checkpoint:
    """``checkpoint`` with weights as ``name`` says; ``auto`` leaves that to its entry. Raises ``ConfigError``."""
    if name == "auto":
        return checkpoint
    if name not in ("none", *QUANTIZATIONS):
        kinds = ", ".join(("auto", "none", *QUANTIZATIONS))
        raise ConfigError(f"quantization must be one of {kinds}, not {name!r}", param="quantization")
    return dataclasses.replace(checkpoint, quantization=None if name == "none" else name)


def count_slots(
    decoder: Decoder, config: EngineConfig, dtype: torch.dtype, device: torch.device, max_model_len: int
) -> int:
    """KV slots that fit the configured memory, at most what ``max_running`` full contexts can use."""
    if config.kv_slots is not None:
        return config.kv_slots
    per_slot = KVCache.bytes_per_slot(decoder.num_layers, decoder.num_kv_heads, decoder.head_dim, dtype)
    if device.type == "cpu":
        room = min(config.kv_bytes, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // 2) // config.tp_size
    else:
        free, _ = torch.cuda.mem_get_info(device)
        room = int(free * config.memory_fraction)
    slots = min(room // per_slot, config.max_running * max_model_len)
    if slots < LEAST_SLOTS:
        raise ConfigError(
            f"only {slots} tokens of keys and values fit in the memory left; give more memory or a smaller model"
        )
    return int(slots)
