from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmserve.errors import CheckpointError
from mmserve.models.layers import MergedLinear, RMSNorm
from mmserve.models.loader import INDEX_FILE, SINGLE_FILE, destinations, load_weights, weight_files


class Block(nn.Module):
    """One of each: a merged matrix with biases, a plain one, a bare parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = MergedLinear(4, {"q": 3, "k": 2, "v": 1}, bias=True)
        self.out = nn.Linear(3, 4, bias=False, device="meta")
        self.norm = RMSNorm(4, 1e-6)
        self.register_buffer("speeds", torch.tensor([0.1, 0.123456789]))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.top = MergedLinear(2, {"left": 1, "right": 1}, bias=False)


SHAPES = {
    "block.q.weight": (3, 4),
    "block.q.bias": (3,),
    "block.k.weight": (2, 4),
    "block.k.bias": (2,),
    "block.v.weight": (1, 4),
    "block.v.bias": (1,),
    "block.out.weight": (4, 3),
    "block.norm.weight": (4,),
    "left.weight": (1, 2),
    "right.weight": (1, 2),
}


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def keep(name: str) -> str | None:
    return None if name.startswith("other.") else name


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Model:
    model = Model()
    load_weights(model, folder, keep, dtype=dtype, device="cpu")
    return model


def save_sharded(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    names = sorted(tensors)
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def check_filled(model: Model, tensors: Mapping[str, Tensor]) -> None:
    parts = [tensors[f"block.{part}.weight"] for part in "qkv"]
    assert torch.equal(model.block.qkv.weight, torch.cat(parts))
    assert torch.equal(model.block.qkv.bias, torch.cat([tensors[f"block.{part}.bias"] for part in "qkv"]))
    assert torch.equal(model.block.out.weight, tensors["block.out.weight"])
    assert torch.equal(model.block.norm.weight, tensors["block.norm.weight"])
    assert torch.equal(model.top.weight, torch.cat([tensors["left.weight"], tensors["right.weight"]]))


def test_destinations_name_every_part_once() -> None:
    places = destinations(Model())
    assert {name: tuple(place.shape) for name, place in places.items()} == SHAPES


def test_fills_all_parameters_from_one_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({**tensors, "other.thing": torch.zeros(3)}, tmp_path / SINGLE_FILE)
    model = load(tmp_path)
    check_filled(model, tensors)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_fills_all_parameters_from_shards(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_sharded(tmp_path, tensors)
    check_filled(load(tmp_path), tensors)


def test_casts_parameters_and_leaves_the_dtype_of_buffers(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: value.half() for name, value in tensors.items()}, tmp_path / SINGLE_FILE)
    model = load(tmp_path, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    check_filled(model, {name: value.half().bfloat16() for name, value in tensors.items()})
    assert torch.equal(model.block.get_buffer("speeds"), torch.tensor([0.1, 0.123456789]))


def test_rename_decides_where_a_tensor_goes(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({f"model.{name}": value for name, value in tensors.items()}, tmp_path / SINGLE_FILE)
    model = Model()
    load_weights(model, tmp_path, lambda name: name.removeprefix("model."), dtype=torch.float32, device="cpu")
    check_filled(model, tensors)


def test_a_missing_tensor_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    del tensors["block.k.bias"]
    save_file(tensors, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=rf"^the weights in {tmp_path} lack block\.k\.bias, which"):
        load(tmp_path)


def test_many_missing_tensors_are_counted(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({"left.weight": tensors["left.weight"]}, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=r"lack block\.k\.bias and 8 more, which"):
        load(tmp_path)


def test_a_tensor_without_a_place_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({**tensors, "block.q.weight_scale": torch.ones(1)}, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=rf"block\.q\.weight_scale in {tmp_path / SINGLE_FILE} has no place"):
        load(tmp_path)


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["block.k.weight"] = torch.zeros(1, 4)  # would broadcast
    save_file(tensors, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=r"block\.k\.weight in .* has shape \[1, 4\], but .* \[2, 4\]"):
        load(tmp_path)


def test_a_quantised_tensor_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["block.out.weight"] = torch.zeros(4, 3, dtype=torch.int8)
    save_file(tensors, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=r"block\.out\.weight in .* is of type I8"):
        load(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_sharded(tmp_path, tensors)
    first = load_file(tmp_path / "model-00001-of-00002.safetensors")
    second = load_file(tmp_path / "model-00002-of-00002.safetensors")
    save_file({**second, **first}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="a second time"):
        load(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, tensors: dict[str, Tensor], kept: float) -> None:
    file = tmp_path / SINGLE_FILE
    save_file(tensors, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data) if isinstance(kept, float) else kept)])
    with pytest.raises(CheckpointError, match=rf"^{file} is damaged or truncated"):
        load(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_sharded(tmp_path, tensors)
    file = tmp_path / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"^{file} is damaged or truncated"):
        load(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="only safetensors"):
        load(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_sharded(tmp_path, tensors)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-00001-of-00002\.safetensors, which is not a file"):
        load(tmp_path)


def test_an_index_cannot_reach_out_of_its_folder(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors, tmp_path / "outside.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "../outside.safetensors")}))
    with pytest.raises(CheckpointError, match="not a file in that directory"):
        load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "{", "\udcff"])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    index = tmp_path / INDEX_FILE
    index.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=rf"^{index} is not a safetensors index"):
        load(tmp_path)


def test_one_file_goes_before_an_index(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    """As in transformers: a stale index beside a merged file is no obstacle."""
    save_sharded(tmp_path, tensors)
    shutil.move(tmp_path / "model-00001-of-00002.safetensors", tmp_path / "gone")
    save_file(tensors, tmp_path / SINGLE_FILE)
    assert weight_files(tmp_path) == [tmp_path / SINGLE_FILE]
    check_filled(load(tmp_path), tensors)
