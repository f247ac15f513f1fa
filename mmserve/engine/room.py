"""Whether a model fits the memory that is free, asked before any of it is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

import torch

from mmserve.checkpoint import TEXT_FAMILIES, Checkpoint
from mmserve.config import EngineConfig
from mmserve.errors import CheckpointError, ConfigError
from mmserve.memory import memory_of
from mmserve.models.families import check_shared

GIB = 1024**3
LEAST_SLOTS = 256
"""KV slots without which no engine starts."""

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """Bytes that an engine needs at the very least."""

    weights: int
    kv: int
    rows: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.rows


def room_for(checkpoint: Checkpoint, config: EngineConfig, dtype: torch.dtype) -> Room:
    """Weights, the KV slots that are configured (or else the fewest), and the rows of pictures that are kept; on each
    rank that shares the model.

    Raises ``CheckpointError`` where the checkpoint does not say.
    """
    need = memory_of(
        checkpoint.path, checkpoint.config, str(dtype).removeprefix("torch."), checkpoint.quantization, config.tp_size
    )
    slots = LEAST_SLOTS if config.kv_slots is None else config.kv_slots
    rows = 0 if checkpoint.family in TEXT_FAMILIES else config.encoder_cache_bytes
    return Room(need.weights, slots * need.kv_per_token, rows)


def check_room(checkpoint: Checkpoint, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ``ConfigError`` where :func:`room_for` says more than is free on ``device``: one sentence, with the way
    out. Ranks on a CPU share what it has."""
    try:
        need, free = room_for(checkpoint, config, dtype), free_bytes(device)
        free //= config.tp_size if device.type == "cpu" else 1
    except CheckpointError:  # the loader, which opens the files next, says better what is wrong with them
        return
    if need.total <= free:
        return
    kept = checkpoint.quantization or str(dtype).removeprefix("torch.")
    parts = [f"{_gib(need.weights)} for its weights ({kept})", f"{_gib(need.kv)} for keys and values"]
    if need.rows:
        parts.append(f"{_gib(need.rows)} for pictures")
    where = "this machine" if device.type == "cpu" else str(device)
    if device.type == "cpu" and config.tp_size > 1:
        where = f"each of {config.tp_size} processes on this machine"
    gpus = torch.cuda.device_count() - (device.index or 0) if device.type == "cuda" else 0
    raise ConfigError(
        f"{checkpoint.name} needs {_gib(need.total)} of memory ({', '.join(parts)}), but {where} has {_gib(free)} "
        f"free: {_way_out(checkpoint, config, dtype, free, gpus)}"
    )


def free_bytes(device: torch.device) -> int:
    """Bytes of ``device``'s memory that can still be had; on a CPU, files kept in memory may be pushed out for it, and
    the limit of a container (cgroup v2) holds."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_available(), *_left_in_container()]
    return min(found)


def _way_out(checkpoint: Checkpoint, config: EngineConfig, dtype: torch.dtype, free: int, gpus: int) -> str:
    """The smallest change that makes it fit, else the general advice. A model can be spread over so many ``gpus``."""
    tries: list[tuple[str, Checkpoint, torch.dtype, EngineConfig]] = []
    if config.kv_slots is not None:
        tries.append(("a smaller --kv-slots", checkpoint, dtype, dataclasses.replace(config, kv_slots=None)))
    if dtype == torch.float32:
        tries.append(("--dtype bfloat16", checkpoint, torch.bfloat16, config))
    if checkpoint.quantization is None:
        rounded = dataclasses.replace(checkpoint, quantization="int8")
        tries.append(("--quantization int8", rounded, dtype, config))
        if dtype == torch.float32:
            tries.append(("--dtype bfloat16 --quantization int8", rounded, torch.bfloat16, config))
    for size in range(config.tp_size + 1, gpus + 1):
        with contextlib.suppress(ConfigError):
            check_shared(checkpoint, size)
            tries.append((f"--tp {size}", checkpoint, dtype, dataclasses.replace(config, tp_size=size)))
    for change, changed, narrower, settings in tries:
        total = room_for(changed, settings, narrower).total
        if total <= free:
            return f"serve it with {change}, which takes {_gib(total)}"
    return "end what else uses that memory, or choose a smaller model or another device"


def _available() -> list[int]:
    """What Linux thinks can be had without swapping; nothing elsewhere."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _left_in_container() -> list[int]:
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return []
    if not limit.isdigit():  # "max": there is none
        return []
    return [max(0, int(limit) - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))]


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= 0.95 * GIB else f"{count / 1024**2:.0f} MiB"
