from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmserve.checkpoint import Checkpoint, default_sampling, read_checkpoint, read_json, text_config
from mmserve.errors import CheckpointError, ConfigError
from mmserve.sampling import SamplingParams
from tests.checkpoints import QWEN_CHAT_TEMPLATE, tiny_qwen2_vl


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2_vl(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def read(folder: Path, **overrides: Any) -> Checkpoint:
    return read_checkpoint(folder, name="tiny", **overrides)


def test_a_published_checkpoint_is_read(folder: Path) -> None:
    checkpoint = read(folder)
    assert (checkpoint.name, checkpoint.path, checkpoint.family) == ("tiny", folder, "qwen2_vl")
    assert (checkpoint.dtype, checkpoint.max_model_len) == ("float32", 2048)
    assert (checkpoint.eos_token_ids, checkpoint.image_token_id) == ((492, 490), 502)
    assert checkpoint.template == QWEN_CHAT_TEMPLATE
    assert checkpoint.processor["max_pixels"] == 64 * 784
    assert checkpoint.vision_config["depth"] == 2
    assert checkpoint.sampling == SamplingParams()
    assert len(checkpoint.fingerprint) == 32


def test_a_checkpoint_saved_by_transformers_is_read_alike(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    newer = tmp_path / "newer"
    Qwen2VLForConditionalGeneration.from_pretrained(folder).save_pretrained(newer)
    AutoProcessor.from_pretrained(folder).save_pretrained(newer)
    assert "text_config" in read_json(newer / "config.json")
    assert not (newer / "preprocessor_config.json").exists()
    old, new = read(folder), read(newer)
    assert new.template == old.template
    assert new.processor["size"] == {"shortest_edge": 4 * 784, "longest_edge": 64 * 784}
    for field in ("family", "dtype", "eos_token_ids", "image_token_id", "max_model_len", "sampling"):
        assert getattr(new, field) == getattr(old, field), field


def test_overrides(folder: Path) -> None:
    checkpoint = read(
        folder, dtype="bfloat16", template="{{ messages }}", max_model_len=100, licence="MIT", description="d"
    )
    assert (checkpoint.dtype, checkpoint.template, checkpoint.max_model_len) == ("bfloat16", "{{ messages }}", 100)
    assert (checkpoint.licence, checkpoint.description) == ("MIT", "d")
    with pytest.raises(ConfigError, match="2048 tokens; max_model_len 4096 is more"):
        read(folder, max_model_len=4096)


def test_a_checkpoint_travels_to_another_process(folder: Path) -> None:
    checkpoint = read(folder)
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint


def test_text_fields_are_flat_or_nested() -> None:
    assert text_config({"hidden_size": 1, "vocab_size": 2}) == {"hidden_size": 1, "vocab_size": 2}
    assert text_config({"hidden_size": 1, "text_config": {"hidden_size": 3}})["hidden_size"] == 3
    assert text_config({"text_config": None, "a": 1})["a"] == 1


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, SamplingParams()),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.1}, SamplingParams()),
        ({"do_sample": False, "repetition_penalty": 1.05}, SamplingParams(repetition_penalty=1.05)),
        ({"do_sample": True}, SamplingParams(temperature=1.0)),
        (
            {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.0},
            SamplingParams(temperature=0.01, top_p=0.001, top_k=1),
        ),
        ({"do_sample": True, "temperature": None, "min_p": 0.1}, SamplingParams(temperature=1.0, min_p=0.1)),
    ],
)
def test_default_sampling(generation: dict[str, Any], expected: SamplingParams) -> None:
    assert default_sampling(generation) == expected


@pytest.mark.parametrize("generation", [{"do_sample": True, "top_p": 7}, {"repetition_penalty": "high"}])
def test_unusable_sampling_settings_are_refused(generation: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="unusable sampling settings"):
        default_sampling(generation)


def test_end_tokens_come_from_the_generation_config_first(folder: Path) -> None:
    edit(folder / "generation_config.json", lambda c: c.update(eos_token_id=5))
    assert read(folder).eos_token_ids == (5,)
    edit(folder / "generation_config.json", lambda c: c.pop("eos_token_id"))
    assert read(folder).eos_token_ids == (492,)
    (folder / "generation_config.json").unlink()
    assert read(folder).eos_token_ids == (492,)
    for wrong in (151_645, None, [], ["x"], [1, 512]):
        edit(folder / "config.json", lambda c, wrong=wrong: c.update(eos_token_id=wrong))  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=r"eos_token_id .* vocabulary of 512 tokens"):
            read(folder)


def test_templates_are_looked_for_in_transformers_order(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("A")
    assert read(folder).template == "A"
    (folder / "chat_template.jinja").unlink()
    edit(folder / "chat_template.json", lambda c: c.update(chat_template="B"))
    assert read(folder).template == "B"
    (folder / "chat_template.json").unlink()
    assert read(folder).template == QWEN_CHAT_TEMPLATE
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    edit(folder / "tokenizer_config.json", lambda c: c.update(chat_template=named))
    assert read(folder).template == "D"
    edit(folder / "tokenizer_config.json", lambda c: c.pop("chat_template"))
    with pytest.raises(CheckpointError, match="no chat template"):
        read(folder)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_a_checkpoint_error(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=r"missing|no \.safetensors file"):
        read(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b'"text"'])
def test_a_damaged_config_is_a_checkpoint_error(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read(folder)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"], "vision_config": None},
            ConfigError,
            "architecture GPT2LMHeadModel are not served; served: .*Qwen2VLForConditionalGeneration",
        ),
        ({"architectures": None}, ConfigError, "none named"),
        ({"vision_config": None}, CheckpointError, "no vision_config"),
        ({"image_token_id": None}, CheckpointError, "image_token_id as a positive integer"),
        ({"max_position_embeddings": "8k"}, CheckpointError, "max_position_embeddings"),
    ],
)
def test_configs_that_cannot_be_served(folder: Path, change: dict[str, Any], error: type[Exception], says: str) -> None:
    edit(folder / "config.json", lambda c: c.update(change))
    with pytest.raises(error, match=says):
        read(folder)


def test_a_cut_weights_file_is_a_checkpoint_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    for kept in (data[:-1], data[: len(data) // 2], data[:100], data[:7], b""):
        weights.write_bytes(kept)
        with pytest.raises(CheckpointError, match="damaged or cut off"):
            read(folder)


def test_the_fingerprint_is_stable_and_independent_of_where_the_folder_lies(original: Path, folder: Path) -> None:
    assert read(original).fingerprint == read(folder).fingerprint == read(folder).fingerprint


def test_the_fingerprint_tells_other_weights_and_settings_apart(folder: Path, tmp_path: Path) -> None:
    fingerprints = {read(folder).fingerprint}
    fingerprints.add(read(tiny_qwen2_vl(tmp_path / "seed", seed=1)).fingerprint)
    fingerprints.add(read(tiny_qwen2_vl(tmp_path / "half", torch_dtype="bfloat16")).fingerprint)
    edit(folder / "preprocessor_config.json", lambda c: c.update(max_pixels=784 * 32))
    fingerprints.add(read(folder).fingerprint)
    edit(folder / "config.json", lambda c: c.update(rope_theta=1.0))
    fingerprints.add(read(folder).fingerprint)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    fingerprints.add(read(folder).fingerprint)
    shutil.copy(weights, folder / "model-2.safetensors")
    fingerprints.add(read(folder).fingerprint)
    assert len(fingerprints) == 7


def test_descriptions_of_a_checkpoint_do_not_change_its_fingerprint(folder: Path) -> None:
    before = read(folder).fingerprint
    edit(folder / "generation_config.json", lambda c: c.update(do_sample=True))
    assert read(folder, max_model_len=10, template="x").fingerprint == before
