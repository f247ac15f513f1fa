"""Filling a model's parameters from the safetensors files of a Hugging Face checkpoint, tensor by tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmserve.errors import CheckpointError, ConfigError
from mmserve.models.layers import MergedLinear, SplitEmbedding, SplitLinear
from mmserve.models.quantised import DTYPES, QuantisedLinear, fill, quantise_layers
from mmserve.models.ranks import Cut

Rename = Callable[[str], str | None]
"""A published tensor's name -> its name among :func:`destinations`, or ``None`` where it is not the module's."""

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

GIB = 1024**3
_FLOATS = ("F64", "F32", "F16", "BF16")


def load_weights(
    module: nn.Module,
    checkpoint: Path,
    rename: Rename,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    quantization: str | None = None,
) -> None:
    """Give every parameter of ``module`` memory of ``dtype`` on ``device`` and the checkpoint's value.

    With a ``quantization`` the linear layers of ``module.layers`` have weights of eight bits (``quantised``), made one
    by one. One tensor at a time is held besides the parameters, and of what a rank has a part of, no more than that is
    read. Buffers move to ``device`` and keep their dtype; the
    module ends in evaluation mode. Raises ``ConfigError`` where the parameters do not fit, and ``CheckpointError``,
    which names tensor and file, where a tensor is missing, has no place in the module though ``rename`` gives it one,
    is of another shape, or is quantised, and where a file is missing or damaged.
    """
    if quantization is not None:
        quantise_layers(module, quantization)
    needed = sum(parameter.numel() * _kept(parameter, dtype).itemsize for parameter in module.parameters())
    check_room(needed, torch.device(device))
    materialise(module, dtype=dtype, device=device)
    missing = destinations(module)
    places, scales, parts = dict(missing), _scales(module), cuts(module)
    for file in weight_files(checkpoint):
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safetensors file is not a mapping)
                target = rename(name)
                if target is None:
                    continue
                part, found = parts.get(target), tensors.get_slice(name)
                if part is not None and not part.ranges:
                    continue
                _check(found, name, file, places.get(target), part)
                if missing.pop(target, None) is None:
                    raise CheckpointError(f"tensor {name} in {file} is there a second time under another name or file")
                fill(places[target], scales.get(target), tensors.get_tensor(name) if part is None else part.of(found))
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"the weights in {checkpoint} lack {min(missing)}{others}, which config.json asks for")


def check_room(needed: int, device: torch.device) -> None:
    """Raise ``ConfigError`` where so many bytes do not fit in the memory that ``device`` has left (on a CPU: has)."""
    room = room_on(device)
    if needed > room:
        raise ConfigError(
            f"the weights take {needed / GIB:.1f} GiB, but {device} has {room / GIB:.1f} GiB for them: "
            "choose a smaller model or dtype, or another device"
        )


def room_on(device: torch.device) -> int:
    """Bytes. What a CPU's memory holds besides may be given back, so all of it counts."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def materialise(module: nn.Module, *, dtype: torch.dtype, device: torch.device | str) -> None:
    """Give ``module``'s parameters uninitialised memory of ``dtype`` on ``device`` (quantised ones keep theirs), and
    move its buffers there."""
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            memory = torch.empty(parameter.shape, dtype=_kept(parameter, dtype), device=device)
            setattr(child, name, nn.Parameter(memory, requires_grad=False))
        for name, buffer in list(child.named_buffers(recurse=False)):
            setattr(child, name, torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device))
    module.eval()


def destinations(module: nn.Module) -> dict[str, Tensor]:
    """The tensor to fill for each name: a parameter, or a part of a merged one under the part's published name."""
    return {
        place: piece
        for owner, child in module.named_modules()
        for name, parameter in child.named_parameters(recurse=False)
        for place, piece in _pieces(owner, child, name, parameter)
    }


def cuts(module: nn.Module) -> dict[str, Cut]:
    """What of a published tensor goes to a place, by the names of :func:`destinations`; all of it where none is given.

    Where another rank has the tensor there is no place, but a cut that takes nothing.
    """
    return {
        ".".join(filter(None, (owner.rpartition(".")[0] if _parts(child) else owner, name))): cut
        for owner, child in module.named_modules()
        if isinstance(child, MergedLinear | SplitLinear | SplitEmbedding | QuantisedLinear)
        for name, cut in child.cuts.items()
    }


def _parts(child: nn.Module) -> Mapping[str, int] | None:
    return child.parts if isinstance(child, MergedLinear | QuantisedLinear) else None


def _scales(module: nn.Module) -> dict[str, Tensor]:
    """The scales of each quantised weight, by the names of :func:`destinations`."""
    return {
        place: piece
        for owner, child in module.named_modules()
        if isinstance(child, QuantisedLinear)
        for place, piece in _pieces(owner, child, "weight", child.scales)
    }


def _pieces(owner: str, child: nn.Module, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    parts = _parts(child)
    if parts is None:
        yield ".".join(filter(None, (owner, name))), tensor
        return
    siblings = owner.rpartition(".")[0]
    for part, piece in zip(parts, torch.split(tensor, list(parts.values())), strict=True):
        yield ".".join(filter(None, (siblings, part, name))), piece


def _kept(parameter: Tensor, dtype: torch.dtype) -> torch.dtype:
    return parameter.dtype if parameter.dtype in DTYPES.values() else dtype


def weight_files(checkpoint: Path) -> list[Path]:
    """A checkpoint directory's safetensors files, each once; raises ``CheckpointError`` where one is missing."""
    single = checkpoint / SINGLE_FILE
    if single.is_file():
        return [single]
    index = checkpoint / INDEX_FILE
    if not index.is_file():
        raise CheckpointError(f"{checkpoint} has neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors are loaded")
    names = _shards(index)
    for name in names:
        # A shard lies beside its index; a name with a directory in it could reach any file of the machine.
        if Path(name).name != name or not (checkpoint / name).is_file():
            raise CheckpointError(f"{index} names {name}, which is not a file in that directory; download it again")
    return [checkpoint / name for name in names]


def _shards(index: Path) -> list[str]:
    try:
        files = json.loads(index.read_bytes())["weight_map"].values()
        return sorted({str(name) for name in files})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index ({error!r}); download it again") from error


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or truncated ({error}); download it again") from error


def _check(found: Any, name: str, file: Path, place: Tensor | None, part: Cut | None) -> None:
    if place is None:
        raise CheckpointError(f"tensor {name} in {file} has no place in the model that config.json describes")
    shape, wanted = list(found.get_shape()), list(place.shape)
    if part is not None:
        wanted[part.axis] = part.whole
    if shape != wanted:
        raise CheckpointError(f"tensor {name} in {file} has shape {shape}, but config.json asks for {wanted}")
    if found.get_dtype() not in _FLOATS:
        kinds = ", ".join(_FLOATS)
        raise CheckpointError(f"tensor {name} in {file} is of type {found.get_dtype()}; only {kinds} can be loaded")
