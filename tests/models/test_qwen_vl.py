"""Qwen2.5-VL and Qwen3-VL answer as transformers does, from both spellings of their files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mmserve.config import Limits
from mmserve.engine.build import build_engine
from mmserve.errors import ConfigError, UnsupportedPicture
from mmserve.models.batch import ForwardBatch
from mmserve.models.config import check_row_width, decoder_config, decoder_rename
from mmserve.models.families import build_model
from mmserve.models.layers import DecoderStack
from mmserve.models.loader import destinations
from mmserve.models.qwen3_vl import qwen3_vl_config
from mmserve.prompt import PromptBuilder, layout_for
from mmserve.sampling import SamplingParams
from mmserve.types import Request
from tests.checkpoints import QWEN_VLS, tiny_qwen_vl
from tests.models.equality import CHUNKED, ROOMY, SIZES, Case, cases, check_equality, resolve
from tests.models.test_families import PICTURES, assert_same, parameters
from tests.models.test_refusals import edited, refused
from tests.proofs.serving import serve
from tests.reference import Reference
from vision.qwen2_5_vl import Qwen25VLEncoder, rename_qwen2_5_vl
from vision.qwen3_vl import Qwen3VLEncoder, rename_qwen3_vl

TAKEN = (*((w, h) for w, h in SIZES if max(w, h) <= 200 * min(w, h)), (5, 1000), (1000, 5), (1, 1), (640, 480))
FEWER = (1, 2, 1, 0, 1, 3)
QWEN2_5_VL_7B: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}
QWEN3_VL_4B: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "intermediate_size": 4096,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen2.5-vl": {"min_pixels": 3136, "max_pixels": 12_845_056},
    "qwen3-vl": {"size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}},
}


class TestAnswers:
    @pytest.mark.parametrize("kind", QWEN_VLS)
    def test_greedy_answers_are_those_of_transformers(self, kind: str, tmp_path: Path) -> None:
        tally = check_equality(tiny_qwen_vl(tmp_path, kind), cases(PICTURES, sizes=TAKEN))
        assert (tally.compared, tally.excused, tally.refused) == (80, 0, 0)

    @pytest.mark.parametrize("kind", QWEN_VLS)
    def test_pictures_that_transformers_refuses_are_refused(self, kind: str, tmp_path: Path) -> None:
        tally = check_equality(tiny_qwen_vl(tmp_path, kind), cases((1, 1, 2), sizes=((1000, 1), (1, 1000))))
        assert (tally.compared, tally.refused) == (0, 3)

    @pytest.mark.parametrize(
        "vision",
        [
            {"window_size": 112, "fullatt_block_indexes": [2]},
            {"window_size": 30, "fullatt_block_indexes": [0]},  # every block by itself
            {"window_size": 10_000, "fullatt_block_indexes": []},  # no picture is larger
            {"fullatt_block_indexes": [2, 0, 1]},
        ],
    )
    def test_settings_of_qwen2_5_vl(self, vision: dict[str, Any], tmp_path: Path) -> None:
        path = tiny_qwen_vl(tmp_path, "qwen2.5-vl", vision_config=vision, tie_word_embeddings=False)
        assert check_equality(path, cases(FEWER, sizes=TAKEN[1:])).excused == 0

    @pytest.mark.parametrize(
        "changes",
        [
            {"vision_config": {"deepstack_visual_indexes": []}},
            {"vision_config": {"deepstack_visual_indexes": [3, 1, 0]}},
            {"vision_config": {"num_position_embeddings": 2304}, "tie_word_embeddings": False},  # inside it says true
            {
                "vision_config": {"num_position_embeddings": 1, "hidden_act": "gelu"},
                "text_config": {"attention_bias": True, "tie_word_embeddings": False},
            },
            {
                "vision_config": {"num_heads": 8},
                "text_config": {
                    "num_key_value_heads": 4,
                    "head_dim": 16,
                    "rope_scaling": {"mrope_interleaved": False, "mrope_section": [2, 3, 3], "rope_type": "default"},
                },
            },
        ],
    )
    def test_settings_of_qwen3_vl(self, changes: dict[str, Any], tmp_path: Path) -> None:
        path = tiny_qwen_vl(tmp_path, "qwen3-vl", **changes)
        assert check_equality(path, cases(FEWER, sizes=TAKEN[1:])).excused == 0


class TestCounts:
    @pytest.mark.parametrize("kind", QWEN_VLS)
    def test_at_the_published_sizes(self, kind: str, tmp_path: Path) -> None:
        """Against what the processor says of sizes, with no picture made."""
        path = edited(tiny_qwen_vl(tmp_path, kind), "preprocessor_config.json", lambda c: c.update(PUBLISHED[kind]))
        rng = random.Random(0)
        sizes = [(int(9000 ** rng.random()), int(9000 ** rng.random())) for _ in range(1300)]
        geometry, processor = layout_for(resolve(path)).geometry, AutoProcessor.from_pretrained(path)
        assert geometry is not None
        taken = [(width, height) for width, height in sizes if max(width, height) <= 200 * min(width, height)]
        assert len(taken) >= 1000
        told = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in taken])
        assert [geometry.measure(*size)[1] for size in taken] == told["num_image_tokens"]
        for size in set(sizes) - set(taken):
            with pytest.raises(UnsupportedPicture, match="more than 200 times the other"):
                geometry.measure(*size)


Watch = Callable[[], list[Tensor | None]]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Returns the picture rows of every step since it was last asked."""
    seen: list[Tensor | None] = []
    forward = DecoderStack.forward

    def watched(self: DecoderStack, batch: ForwardBatch, *caches: list[Tensor]) -> Tensor:
        seen.append(batch.media_rows)
        return forward(self, batch, *caches)

    monkeypatch.setattr(DecoderStack, "forward", watched)

    def taken() -> list[Tensor | None]:
        steps = seen.copy()
        seen.clear()
        return steps

    return taken


class TestDeepstack:
    """Features reach the decoder with the chunk that holds their tokens, and not again once keys hold their effect."""

    def test_features_follow_chunks_that_cut_a_picture(self, tmp_path: Path, watch: Watch) -> None:
        path = tiny_qwen_vl(tmp_path, "qwen3-vl")
        (case,) = cases((1,), sizes=((256, 200),))
        prompt = PromptBuilder(resolve(path), Limits()).build([case.message])
        engine = build_engine(resolve(path), CHUNKED)
        answer = serve(engine, [Request("r", prompt, SamplingParams(max_tokens=8, ignore_eos=True))])["r"]
        engine.close()
        pieces = [rows for rows in watch() if rows is not None]
        assert len(pieces) > 2
        assert sum(map(len, pieces)) == prompt.pictures[0].rows
        whole = torch.cat(pieces)
        assert whole.shape[1] == 3 * 64
        assert all(part.std() > 0.1 for part in torch.split(whole, 64, 1))
        assert answer == Reference(path).answer(case.pictures, case.question, 8, to_the_end=True).token_ids

    def test_a_cached_picture_needs_no_rows(self, tmp_path: Path, watch: Watch) -> None:
        path = tiny_qwen_vl(tmp_path, "qwen3-vl")
        (case,) = cases((2,), sizes=((256, 200), (60, 100)))
        builder, reference = PromptBuilder(resolve(path), Limits()), Reference(path)
        engine = build_engine(resolve(path), ROOMY)
        for number, question in enumerate(("What is this?", "Is there a red circle?", "Where is the dog?")):
            prompt = builder.build([Case(question, case.pictures).message])
            request = Request(str(number), prompt, SamplingParams(max_tokens=8, ignore_eos=True))
            answer = serve(engine, [request])[str(number)]
            assert answer == reference.answer(case.pictures, question, 8, to_the_end=True).token_ids
            assert any(rows is not None for rows in watch()) == (number == 0)
        engine.close()

    def test_features_change_the_answer(self, tmp_path: Path) -> None:
        """Or else nothing above would show that they are there."""
        path = tiny_qwen_vl(tmp_path, "qwen3-vl")
        config = qwen3_vl_config(resolve(path).config)
        assert (config.deepstack, config.row_width, config.qk_norm, config.rope.interleaved) == (2, 192, True, True)
        (case,) = cases((1,), sizes=((256, 200),))
        before = Reference(path).answer(case.pictures, case.question, 8, to_the_end=True)
        weights = load_file(path / "model.safetensors")
        for name in weights:
            if "deepstack_merger_list" in name and "fc2" in name:
                weights[name] = torch.zeros_like(weights[name])
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        after = Reference(path).answer(case.pictures, case.question, 8, to_the_end=True)
        assert before.token_ids != after.token_ids


class TestPublished:
    """The shapes of published checkpoints, without their memory."""

    @pytest.mark.parametrize("config", [QWEN2_5_VL_7B, QWEN3_VL_4B], ids=["qwen2.5-vl-7b", "qwen3-vl-4b"])
    def test_every_tensor_has_a_place_of_its_shape(self, config: dict[str, Any]) -> None:
        with torch.device("meta"):
            theirs = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config))
        newer = "text_config" in config
        shape = qwen3_vl_config(config) if newer else decoder_config(config)
        encoder = (Qwen3VLEncoder if newer else Qwen25VLEncoder)(config["vision_config"])
        check_row_width(encoder.row_width, shape.row_width)
        ours = [
            (destinations(DecoderStack(shape)), decoder_rename(shape)),
            (destinations(encoder), rename_qwen3_vl if newer else rename_qwen2_5_vl),
        ]
        for name, tensor in theirs.named_parameters():
            (found,) = [places.pop(to).shape for places, rename in ours if (to := rename(name)) is not None]
            assert found == tensor.shape, name
        assert not any(places for places, _ in ours)

    def test_decoders_are_read_as_published(self) -> None:
        older, newer = decoder_config(QWEN2_5_VL_7B), qwen3_vl_config(QWEN3_VL_4B)
        assert (older.qkv_bias, older.o_bias, older.qk_norm, older.tie_word_embeddings) == (True, False, False, False)
        assert (older.rope.section, older.rope.theta, older.rope.interleaved) == ((16, 24, 24), 1e6, False)
        assert (newer.qkv_bias, newer.o_bias, newer.qk_norm, newer.tie_word_embeddings) == (False, False, True, True)
        assert (newer.rope.section, newer.rope.theta, newer.rope.interleaved) == ((24, 20, 20), 5e6, True)
        assert (newer.deepstack, newer.row_width) == (3, 4 * 2560)


class TestNames:
    @pytest.mark.parametrize("kind", QWEN_VLS)
    @pytest.mark.parametrize("tied", [True, False])
    def test_both_spellings_and_shards_hold_the_same_weights(self, kind: str, tied: bool, tmp_path: Path) -> None:
        published = parameters(tiny_qwen_vl(tmp_path / "published", kind, tie_word_embeddings=tied))
        other = tiny_qwen_vl(tmp_path / "other", kind, tie_word_embeddings=tied, new_names=True)
        spelled = {kind: set(load_file(tmp_path / kind / "model.safetensors")) for kind in ("published", "other")}
        assert "visual.patch_embed.proj.weight" in spelled["published" if kind == "qwen2.5-vl" else "other"]
        assert "model.visual.patch_embed.proj.weight" in spelled["other" if kind == "qwen2.5-vl" else "published"]
        assert_same(parameters(other), published)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "published", dtype=torch.float32)
        (other / "model.safetensors").unlink()
        model.save_pretrained(other, max_shard_size="100KB")
        assert len(list(other.glob("*.safetensors"))) > 1
        assert_same(parameters(other), published)

    @pytest.mark.parametrize("kind", QWEN_VLS)
    def test_newer_files_are_answered_alike(self, kind: str, tmp_path: Path) -> None:
        """config.json too, as transformers writes it now."""
        path = tiny_qwen_vl(tmp_path, kind)
        AutoConfig.from_pretrained(path).save_pretrained(path)
        written = json.loads((path / "config.json").read_text())
        assert "rope_parameters" in written["text_config"]
        edited(path, "config.json", lambda c: c.update(architectures=written.get("architectures")))
        assert check_equality(path, cases(FEWER, sizes=TAKEN)).excused == 0

    def test_the_older_name_of_the_image_processor_is_read(self, tmp_path: Path) -> None:
        path = edited(
            tiny_qwen_vl(tmp_path, "qwen2.5-vl"),
            "preprocessor_config.json",
            lambda c: c.update(image_processor_type="Qwen2_5_VLImageProcessor"),
        )
        assert build_model(resolve(path), torch.float32, torch.device("cpu")).pixels is not None


TENSORS = {
    "qwen2.5-vl": (
        "visual.blocks.1.mlp.gate_proj.bias",
        "visual.merger.ln_q.weight",
        "model.layers.2.mlp.up_proj.weight",
    ),
    "qwen3-vl": (
        "model.visual.pos_embed.weight",
        "model.visual.deepstack_merger_list.1.linear_fc1.bias",
        "model.language_model.layers.0.self_attn.q_norm.weight",
    ),
}


class TestRefusals:
    @pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in QWEN_VLS for name in TENSORS[kind]])
    def test_a_tensor_is_missing_or_misshapen(self, kind: str, name: str, tmp_path: Path) -> None:
        path = tiny_qwen_vl(tmp_path, kind)
        tensors = load_file(path / "model.safetensors")
        value = tensors.pop(name)
        save_file(tensors, path / "model.safetensors")
        refused(path, "lack ")
        save_file({**tensors, name: torch.cat((value, value))}, path / "model.safetensors")
        refused(path, f"tensor {name.replace('.', '[.]')} in .* has shape .*, but config.json asks for")

    @pytest.mark.parametrize("kind", QWEN_VLS)
    def test_a_tensor_belongs_to_nothing(self, kind: str, tmp_path: Path) -> None:
        path = tiny_qwen_vl(tmp_path, kind)
        tensors = load_file(path / "model.safetensors") | {"model.visual.blocks.9.norm1.weight": torch.ones(32)}
        save_file(tensors, path / "model.safetensors")
        refused(path, r"tensor model\.visual\.blocks\.9\.norm1\.weight in .* has no place")

    @pytest.mark.parametrize(
        ("kind", "vision", "says"),
        [
            ("qwen2.5-vl", {"hidden_act": "gelu"}, "the activation 'gelu' in the vision tower"),
            ("qwen2.5-vl", {"window_size": 20}, "window_size 20 is smaller than one row's patches"),
            ("qwen2.5-vl", {"fullatt_block_indexes": [3]}, "must list some of the tower's 3 layers once"),
            ("qwen2.5-vl", {"fullatt_block_indexes": None}, "fullatt_block_indexes must list .*, got None"),
            ("qwen2.5-vl", {"out_hidden_size": 32}, "rows of width 32, but the decoder takes 64"),
            ("qwen2.5-vl", {"num_heads": 3}, "width 32 into 3 heads"),
            ("qwen2.5-vl", {"patch_size": 16}, "makes patches of 14 merged by 2, but the vision tower expects 16"),
            ("qwen2.5-vl", {"depth": None}, "depth as a positive integer, got None"),
            ("qwen3-vl", {"deepstack_visual_indexes": [1, 1]}, "must list some of the tower's 4 layers once"),
            ("qwen3-vl", {"deepstack_visual_indexes": [0, 1, 2, 3]}, "4 layers, and 4 take features"),
            ("qwen3-vl", {"num_position_embeddings": 35}, "35 do not fill a square"),
            ("qwen3-vl", {"hidden_act": "elu"}, "the activation 'elu'"),
            ("qwen3-vl", {"out_hidden_size": 32}, "rows of width 96, but the decoder takes 192"),
        ],
    )
    def test_a_tower_that_is_not_served(self, kind: str, vision: dict[str, Any], says: str, tmp_path: Path) -> None:
        path = tiny_qwen_vl(tmp_path, kind)
        refused(edited(path, "config.json", lambda c: c["vision_config"].update(vision)), says)

    def test_positions_must_have_three_axes(self, tmp_path: Path) -> None:
        path = tiny_qwen_vl(tmp_path / "a", "qwen2.5-vl")
        refused(edited(path, "config.json", lambda c: c.pop("rope_scaling")), "mrope_section with 3 parts")
        path = tiny_qwen_vl(tmp_path / "b", "qwen3-vl")
        edited(path, "config.json", lambda c: c["text_config"]["rope_scaling"].pop("mrope_section"))
        refused(path, "mrope_section with 3 parts")

    def test_a_mixture_of_experts_is_named_as_one(self, tmp_path: Path) -> None:
        path = tiny_qwen_vl(tmp_path, "qwen3-vl")
        moe = {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe"}
        edited(path, "config.json", lambda c: c.update(moe))
        with pytest.raises(
            ConfigError, match="are not served: they are mixtures of experts; choose a dense Qwen3-VL"
        ) as caught:
            resolve(path)
        assert "\n" not in caught.value.message
