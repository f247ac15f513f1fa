"""Decoders whose weights are rounded to eight bits while they are loaded: what is rounded, what it costs and saves."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.quantised import answered, decoder_bytes, layer_bytes, load, logits_of, loss, spoken
from mmserve.checkpoint import QUANTIZATIONS, Checkpoint
from mmserve.config import EngineConfig
from mmserve.engine.build import build_engine
from mmserve.errors import CheckpointError, ConfigError
from mmserve.models import families
from mmserve.models.batch import Model
from mmserve.models.families import build_model
from mmserve.models.quantised import DTYPES, QuantisedLinear, is_quantised, quantise_layers
from mmserve.models.ranks import Ranks
from mmserve.registry import load_registry
from mmserve.sampling import SamplingParams
from mmserve.types import Request
from tests.checkpoints import LLAVAS, TEXT_MODELS
from tests.models.test_families import tiny
from tests.proofs.serving import serve

FAMILIES = ("qwen2-vl", *LLAVAS, *TEXT_MODELS)
EXAMPLES = Path(families.__file__).parents[1] / "assets" / "examples"


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random model wide enough for rounding errors to average out, as in a real one."""
    shape = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4, "torch_dtype": "bfloat16"}
    return resolve(tiny(tmp_path_factory.mktemp("medium"), "llama", **shape))


def resolve(path: Path) -> Checkpoint:
    return load_registry().resolve(str(path))


def tensors(module: Any) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_layers_matrices_are_rounded_and_nothing_else(kind: str, quantization: str, tmp_path: Path) -> None:
    checkpoint = resolve(tiny(tmp_path, kind))
    exact, rounded = load(checkpoint, None), load(checkpoint, quantization)
    ours, theirs = tensors(rounded.decoder), tensors(exact.decoder)
    matrices = {name for name, value in theirs.items() if name.startswith("layers.") and value.ndim == 2}
    assert matrices
    for name, value in theirs.items():
        if name not in matrices:
            assert torch.equal(ours[name], value), name
            continue
        assert ours[name].dtype is DTYPES[quantization]
        back = ours[name].float() * ours[name.removesuffix("weight") + "scales"][:, None]
        off = (back - value).abs().amax(1) / value.abs().amax(1)
        assert off.max() <= (0.5 / 127 if quantization == "int8" else 1 / 16) * 1.001
    assert ours.keys() - theirs.keys() == {name.removesuffix("weight") + "scales" for name in matrices}
    if exact.encoder is not None:
        mine, its = tensors(rounded.encoder), tensors(exact.encoder)
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name], its[name]) for name in its)


@pytest.mark.parametrize(("quantization", "most"), [("int8", 1e-6), ("fp8", 1e-5)])
def test_the_embedded_model_loses_nothing_that_counts(pocket_vl: Checkpoint, quantization: str, most: float) -> None:
    asked = [
        ("red-circle.png", "What color is the circle?", "red"),
        ("blue-rectangle.png", "What is this?", "a blue rectangle"),
        ("black-triangle.png", "What is this?", "a black triangle"),
        ("yellow-rectangle.png", "Is this a circle?", "no"),
    ]
    cases = answered(pocket_vl, [(EXAMPLES / name, question, answer) for name, question, answer in asked])
    exact, rounded = load(pocket_vl, None), load(pocket_vl, quantization)
    found = loss(*([logits_of(model, pocket_vl, case) for case in cases] for model in (exact, rounded)))
    assert found.positions == sum(len(case.prompt) - 1 - case.start for case in cases)
    assert found.agreement == 1.0
    assert 0 < found.mean_kl <= most


@pytest.mark.parametrize(("quantization", "most", "least"), [("int8", 0.02, 0.85), ("fp8", 0.15, 0.5)])
def test_a_random_model_stays_near_itself(medium: Checkpoint, quantization: str, most: float, least: float) -> None:
    """Its best tokens are close to one another, so that agreement is far harder than for a trained model."""
    cases = spoken(medium, [f"Tell me about {i} things." for i in range(6)])
    exact, rounded = load(medium, None), load(medium, quantization)
    found = loss(*([logits_of(model, medium, case) for case in cases] for model in (exact, rounded)))
    assert 0 < found.mean_kl <= most
    assert found.agreement >= least


def test_loss_is_none_between_equals_and_counts_what_differs() -> None:
    logits = torch.randn(5, 7)
    same = loss([logits], [logits + 3])
    assert same.worst_kl == pytest.approx(0)
    assert same.agreement == 1.0
    even, certain = torch.zeros(1, 2), torch.tensor([[0.0, -50.0]])
    other = loss([even, certain], [torch.tensor([[-1.0, 0.0]]), certain])
    expected = float((0.5 * (torch.log(torch.tensor(0.5)) - torch.tensor([-1.0, 0.0]).log_softmax(0))).sum())
    assert other.worst_kl == pytest.approx(expected, abs=1e-6)
    assert (other.positions, other.agreement) == (2, 0.5)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_bytes_saved_are_those_of_one_byte_a_weight(medium: Checkpoint, quantization: str) -> None:
    plain, rounded = (load(medium, kind, torch.bfloat16) for kind in (None, quantization))
    weights, channels = 0, 0
    for layer in rounded.decoder.modules():  # type: ignore[attr-defined]
        if isinstance(layer, QuantisedLinear):
            weights, channels = weights + layer.weight.numel(), channels + len(layer.weight)
    assert decoder_bytes(plain) - decoder_bytes(rounded) == weights - 4 * channels
    assert layer_bytes(rounded) < 0.52 * layer_bytes(plain)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak, self.known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_loading_never_holds_much_more_than_the_rounded_weights(medium: Checkpoint, quantization: str) -> None:
    with Watch() as watch:
        model = load(medium, quantization, torch.bfloat16)
    held = decoder_bytes(model)
    published = load(medium, None, torch.bfloat16)
    largest = max(value.numel() for value in tensors(published.decoder).values())
    # One published matrix, and it in float32 three times (exact, scaled, rounded), besides what stays.
    assert held <= watch.peak <= held + (2 + 3 * 4) * largest
    assert watch.peak < decoder_bytes(published)


def test_an_engine_answers_with_rounded_weights(checkpoint: Checkpoint) -> None:
    answers = []
    for quantization in ("none", "int8", "fp8"):
        engine = build_engine(checkpoint, EngineConfig(device="cpu", quantization=quantization, kv_slots=512))
        try:
            [case] = spoken(checkpoint, ["What is this?"])
            sampling = SamplingParams(max_tokens=8, ignore_eos=True)
            answers.append(serve(engine, [Request("a", case.prompt, sampling)])["a"])
        finally:
            engine.close()
    assert [len(answer) for answer in answers] == [8, 8, 8]


def test_what_cannot_be_done_is_said(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="one of auto, none, int8, fp8, not 'int4'"):
        build_engine(checkpoint, EngineConfig(device="cpu", quantization="int4"))
    with pytest.raises(ConfigError, match="one of int8, fp8, not 'int3'"):
        quantise_layers(nn.Module(), "int3")
    with pytest.raises(ConfigError, match="cannot be quantised to int8"):
        quantise_layers(nn.Linear(2, 2), "int8")

    def never(each: Checkpoint, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> Model:
        return build(dataclasses.replace(each, quantization=None), dtype, device, ranks)

    build = families.BUILDERS[checkpoint.family]
    monkeypatch.setattr(families, "BUILDERS", {checkpoint.family: never})
    wanted = dataclasses.replace(checkpoint, quantization="int8")
    with pytest.raises(ConfigError, match="of family qwen2_vl, whose weights cannot be quantised while loading"):
        build_model(wanted, torch.float32, torch.device("cpu"))
    assert not is_quantised(build_model(checkpoint, torch.float32, torch.device("cpu")).decoder)


def test_a_missing_tensor_is_named_as_ever(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny(tmp_path, "llama")
    file = path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=r"lack layers\.1\.self_attn\.k_proj\.weight, which"):
        load(resolve(path), "int8")
