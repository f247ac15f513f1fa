"""Every family answers as transformers does, and its pictures have the rows that their headers promise."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from mmserve.config import Limits
from mmserve.models.families import build_model
from mmserve.prompt import PromptBuilder, layout_for
from tests.checkpoints import LLAVAS, QWEN_VLS, TEXT_MODELS, tiny_llava, tiny_qwen2_vl, tiny_qwen_vl, tiny_text
from tests.models.equality import Case, cases, check_conversations, check_counts, check_equality, resolve

PICTURES = (0, 1, 2, 3, 1, 1, 1, 1, 0, 2, 1, 3, 1, 1, 1, 2, 0, 1, 3, 1)
PUBLISHED: dict[str, dict[str, Any]] = {
    "llava": {"vision_config": {"image_size": 336}},
    "llava-next": {
        "vision_config": {"image_size": 336},
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    "llava-onevision": {
        "vision_config": {"image_size": 384},
        "image_grid_pinpoints": [[384 * high, 384 * wide] for high in range(1, 7) for wide in range(1, 7)],
    },
}
"""What shapes pictures in llava-1.5, llava-v1.6 and llava-onevision as published."""
FEWER = (1, 2, 1, 0, 1, 3)
QWENS = ("qwen2-vl", *QWEN_VLS)
SEEING = (*LLAVAS, *QWENS)


def tiny(path: Path, kind: str, **overrides: Any) -> Path:
    if kind == "qwen2-vl":
        return tiny_qwen2_vl(path, **overrides)
    if kind in QWEN_VLS:
        return tiny_qwen_vl(path, kind, **overrides)
    return tiny_text(path, kind, **overrides) if kind in TEXT_MODELS else tiny_llava(path, kind, **overrides)


class TestAnswers:
    @pytest.mark.parametrize("kind", TEXT_MODELS)
    def test_models_that_read_text(self, kind: str, tmp_path: Path) -> None:
        tally = check_equality(tiny(tmp_path, kind), cases([0] * 20))
        assert (tally.compared, tally.refused) == (80, 0)
        assert tally.excused <= 1

    @pytest.mark.parametrize("kind", LLAVAS)
    def test_llava(self, kind: str, tmp_path: Path) -> None:
        tally = check_equality(tiny(tmp_path, kind), cases(PICTURES))
        assert (tally.compared, tally.refused) == (80, 0)
        assert tally.excused <= 1

    def test_qwen2_vl(self, tmp_path: Path) -> None:
        tally = check_equality(tiny(tmp_path, "qwen2-vl"), cases(PICTURES))
        assert tally.compared + 4 * tally.refused == 80
        assert 0 < tally.refused < 10  # some are longer than this family takes
        assert tally.excused <= 1

    @pytest.mark.parametrize(
        ("kind", "changes"),
        [
            ("llama", {"attention_bias": True, "mlp_bias": True, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4, "rope_scaling": None, "head_dim": 8}),
            ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
            ("qwen3", {"tie_word_embeddings": False, "attention_bias": True}),
            ("qwen2", {"use_sliding_window": True}),  # from the layer on that it does not have
            ("mistral", {"sliding_window": 4096}),  # as long as the context
        ],
    )
    def test_settings_of_language_models(self, kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
        assert check_equality(tiny(tmp_path, kind, **changes), cases([0] * 6)).excused == 0

    @pytest.mark.parametrize(
        ("kind", "changes"),
        [
            ("llava-vicuna", {"vision_feature_select_strategy": "full"}),
            ("llava-vicuna", {"vision_feature_layer": [0, -1, 1]}),
            ("llava-vicuna", {"projector_hidden_act": "relu", "multimodal_projector_bias": False}),
            ("llava-vicuna", {"vision_config": {"hidden_act": "gelu", "image_size": 56, "layer_norm_eps": 0.1}}),
            ("llava-next-vicuna", {"vision_feature_layer": 1, "tie_word_embeddings": True}),
            ("llava-next-qwen", {"image_grid_pinpoints": [[84, 42], [42, 210]]}),
            ("llava-onevision", {"vision_aspect_ratio": "anyres_max_2"}),
            ("llava-onevision", {"vision_feature_layer": -2, "text_config": {"tie_word_embeddings": True}}),
        ],
    )
    def test_settings_of_picture_encoders(self, kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
        assert check_equality(tiny(tmp_path, kind, **changes), cases(FEWER)).excused == 0


class TestCounts:
    @pytest.mark.parametrize("kind", SEEING)
    def test_rows_are_known_from_the_header(self, kind: str, tmp_path: Path) -> None:
        assert (check_counts(tiny(tmp_path, kind), 60) > 0) == (kind in QWENS)

    @pytest.mark.parametrize("kind", LLAVAS)
    def test_at_the_published_sizes(self, kind: str, tmp_path: Path) -> None:
        """Against what the processor says of sizes, with no picture made."""
        changes = PUBLISHED.get(kind) or PUBLISHED[kind.rpartition("-")[0]]
        path = tiny(tmp_path, kind, **changes)
        rng = random.Random(0)
        sizes = [(int(5000 ** rng.random()), int(5000 ** rng.random())) for _ in range(1000)]
        geometry = layout_for(resolve(path)).geometry
        assert geometry is not None
        processor = AutoProcessor.from_pretrained(path)
        told = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])
        taken = [(size, told["num_image_tokens"][i]) for i, size in enumerate(sizes) if max(size) <= 1000 * min(size)]
        assert [geometry.measure(*size)[1] for size, _ in taken] == [rows for _, rows in taken]

    @pytest.mark.proof
    @pytest.mark.parametrize("kind", SEEING)
    def test_rows_are_known_from_a_thousand_headers(self, kind: str, tmp_path: Path) -> None:
        refused = check_counts(tiny(tmp_path, kind), 1000, seed=1)
        print(f"{kind}: 1000 prompts with pictures of random sizes, all as the processor's; both refuse {refused}")
        assert (refused > 0) == (kind in QWENS)


class TestPrompts:
    @pytest.mark.parametrize("kind", [*TEXT_MODELS, *SEEING])
    def test_conversations_are_encoded_as_transformers_encodes_them(self, kind: str, tmp_path: Path) -> None:
        check_conversations(tiny(tmp_path, kind), (1, 0, 2) if kind in SEEING else (0, 0, 0))

    @pytest.mark.parametrize("kind", SEEING)
    def test_a_placeholder_that_callers_type_is_text(self, kind: str, tmp_path: Path) -> None:
        checkpoint = resolve(tiny(tmp_path, kind))
        builder = PromptBuilder(checkpoint, Limits())
        name = builder.tokenizer.id_to_token(checkpoint.require_image_token())
        (case,) = cases((1,), sizes=((60, 100),))
        prompt = builder.build([Case(f"{name} Is <s> a cat?</s>", case.pictures).message])
        assert (prompt.token_ids == checkpoint.image_token_id).sum() == prompt.pictures[0].rows
        assert f"{name} Is <s> a cat?</s>" in builder.decode(prompt.token_ids.tolist())


class TestNames:
    @pytest.mark.parametrize("kind", LLAVAS)
    def test_newer_names_and_shards_hold_the_same_weights(self, kind: str, tmp_path: Path) -> None:
        """As newer transformers name them, and as it saves them now, in several files."""
        published = parameters(tiny(tmp_path / "published", kind))
        newer = tiny(tmp_path / "newer", kind, new_names=True)
        names = load_file(newer / "model.safetensors")
        assert any(name.startswith("model.language_model.layers") for name in names)
        assert any(name.startswith("model.vision_tower.") for name in names)
        assert_same(parameters(newer), published)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "published", dtype=torch.float32)
        (newer / "model.safetensors").unlink()
        model.save_pretrained(newer, max_shard_size="100KB")
        assert len(list(newer.glob("*.safetensors"))) > 1
        assert_same(parameters(newer), published)

    @pytest.mark.parametrize("kind", TEXT_MODELS)
    def test_what_transformers_saves_is_read_again(self, kind: str, tmp_path: Path) -> None:
        path = tiny(tmp_path, kind)
        before = parameters(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        (path / "model.safetensors").unlink()
        model.save_pretrained(path)
        assert_same(parameters(path), before)


def parameters(path: Path) -> dict[str, torch.Tensor]:
    model = build_model(resolve(path), torch.float32, torch.device("cpu"))
    found: dict[str, torch.Tensor] = {}
    for part in (model.decoder, model.encoder):
        if isinstance(part, torch.nn.Module):
            found |= {f"{type(part).__name__}.{name}": value for name, value in part.state_dict().items()}
    return found


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
