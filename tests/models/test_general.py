"""The general path: models that transformers computes answer as it does over our cache, or are refused at start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.errors import ConfigError, UnsupportedPicture
from mmserve.models import general
from mmserve.models.families import build_model
from mmserve.prompt import PromptBuilder, layout_for
from mmserve.prompt import general as layouts
from tests.checkpoints import GENERALS, tiny_general
from tests.models.equality import Case, cases, check_conversations, check_counts, check_equality, resolve
from tests.reference import Processor

# transformers' GLM-4V processor makes arrays of tensors in a way that numpy is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PICTURES = (0, 1, 2, 3, 1, 1, 1, 1, 0, 2, 1, 3, 1, 1, 1, 2, 0, 1, 3, 1)
FEWER = (1, 2, 0, 1, 3)
REFUSE_LONG = ("glm4v", "lighton_ocr", "mistral3", "pixtral")
"""The families that refuse some of the sizes asked about."""

PAN_AND_SCAN = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 40,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
CONFIG = EngineConfig(device="cpu", dtype="float32", kv_slots=256)


@pytest.fixture(autouse=True)
def _num2words(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolVLM's processor asks for this package, which it needs for videos only."""
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)


def refused(path: Path, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        build_engine(resolve(path), CONFIG).close()
    assert "\n" not in caught.value.message


def edited(path: Path, file: str = "config.json", **changes: Any) -> Path:
    content = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(content | changes))
    return path


class TestAnswers:
    @pytest.mark.parametrize("kind", GENERALS)
    def test_they_are_those_of_transformers(self, kind: str, tmp_path: Path) -> None:
        path = tiny_general(tmp_path, kind)
        assert resolve(path).family == "general"
        tally = check_equality(path, cases(PICTURES))
        assert tally.compared + 4 * tally.refused == 80
        assert (tally.refused > 0) == (kind in REFUSE_LONG)
        assert tally.compared >= 40
        assert tally.excused <= 1

    @pytest.mark.parametrize(
        ("kind", "changes"),
        [
            ("internvl", {"preprocessor": {"crop_to_patches": True}}),
            ("idefics3", {"preprocessor": {"do_image_splitting": False}}),
            ("idefics3", {"text_config": {"tie_word_embeddings": True}, "tie_word_embeddings": True}),
            ("aya_vision", {"preprocessor": {"max_patches": 2}}),
            ("mistral3", {"multimodal_projector_bias": True, "text_config": {"num_key_value_heads": 4}}),
            ("vipllava", {"vision_feature_layers": [0, 2]}),
            ("aya_vision", {"text_config": {"sliding_window": 24}}),
            ("cohere2_vision", {"text_config": {"sliding_window": 7, "sliding_window_pattern": 2}}),
            ("mistral3", {"text_config": {"sliding_window": 16}}),
            ("gemma3", {"text_config": {"sliding_window": 4096, "sliding_window_pattern": 3}}),
            ("gemma3", {"preprocessor": PAN_AND_SCAN}),
            ("internvl", {"text_config": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}}),
        ],
    )
    def test_settings(self, kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
        assert check_equality(tiny_general(tmp_path, kind, **changes), cases(FEWER)).excused == 0

    def test_a_picture_of_one_row_has_the_row_that_it_has_beside_others(self, tmp_path: Path) -> None:
        """Of which Mistral 3 in transformers makes no rows where it is alone."""
        path = tiny_general(tmp_path, "mistral3")
        model = build_model(resolve(path), torch.float32, torch.device("cpu"))
        reference = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        small, other = (Image.effect_noise(size, 90).convert("RGB") for size in ((12, 9), (14, 14)))
        geometry = layout_for(resolve(path)).geometry
        assert geometry is not None
        assert model.encoder is not None
        assert model.pixels is not None
        grid, _ = geometry.measure(*small.size)
        (rows,) = model.encoder.encode([model.pixels(small, grid)])
        both = Processor(path).inputs((small, other), "?")
        with torch.inference_mode():
            made = reference.get_image_features(both["pixel_values"], image_sizes=both["image_sizes"])
        assert rows.shape == (1, 64)
        torch.testing.assert_close(rows, made.pooler_output[0])


class TestCounts:
    @pytest.mark.parametrize("kind", GENERALS)
    def test_rows_are_known_from_the_header(self, kind: str, tmp_path: Path) -> None:
        assert (check_counts(tiny_general(tmp_path, kind), 60) > 0) == (kind in REFUSE_LONG)

    @pytest.mark.proof
    @pytest.mark.parametrize("kind", GENERALS)
    def test_rows_are_known_from_a_thousand_headers(self, kind: str, tmp_path: Path) -> None:
        refused = check_counts(tiny_general(tmp_path, kind), 1000, seed=1)
        print(f"{kind}: 1000 prompts with pictures of random sizes, all as the processor's; both refuse {refused}")
        assert (refused > 0) == (kind in REFUSE_LONG)

    def test_a_size_is_given_to_the_processor_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        geometry = layout_for(resolve(tiny_general(tmp_path, "idefics3"))).geometry
        assert geometry is not None
        first = geometry.measure(90, 45)
        monkeypatch.setattr(Image, "new", lambda *_: pytest.fail("another picture was made"))
        assert geometry.measure(90, 45) == first

    @pytest.mark.parametrize("kind", sorted(GENERALS.keys() - {"vipllava"}))
    def test_planning_touches_no_pixels(self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """However large the picture is."""
        geometry = layout_for(resolve(tiny_general(tmp_path, kind))).geometry
        assert geometry is not None
        monkeypatch.setattr(Image, "new", lambda *_: pytest.fail("a picture was made"))
        assert geometry.measure(400_000, 300_000)[1] > 0

    def test_a_processor_that_looks_at_pixels_gets_a_blank_picture(self, tmp_path: Path) -> None:
        geometry = layout_for(resolve(tiny_general(tmp_path, "vipllava"))).geometry
        assert geometry is not None
        assert geometry.measure(400, 300) == geometry.measure(30, 40)

    def test_a_picture_that_gets_no_row_is_refused(self, tmp_path: Path) -> None:
        path = tiny_general(tmp_path, "lighton_ocr", preprocessor={"patch_size": 7})
        geometry = layout_for(resolve(path)).geometry
        assert geometry is not None
        with pytest.raises(UnsupportedPicture, match="5×28 pixels, of which this model makes nothing at all: scale"):
            geometry.measure(5, 28)

    def test_a_thin_picture_is_refused_before_the_processor_sees_it(self, tmp_path: Path) -> None:
        geometry = layout_for(resolve(tiny_general(tmp_path, "vipllava"))).geometry
        assert geometry is not None
        with pytest.raises(UnsupportedPicture, match=r"more than 1,000 times"):
            geometry.measure(60_000, 1)

    def test_settings_of_the_processor_tell_pictures_apart(self, tmp_path: Path) -> None:
        prompts = []
        for number, longest in enumerate((56, 112)):
            path = tiny_general(tmp_path / str(number), "idefics3", preprocessor={"size": {"longest_edge": longest}})
            case = cases((1,), sizes=((60, 100),))[0]
            prompts.append(PromptBuilder(resolve(path), Limits()).build([case.message]))
        assert prompts[0].pictures[0].content != prompts[1].pictures[0].content
        assert prompts[0].pictures[0].rows < prompts[1].pictures[0].rows


class TestPrompts:
    @pytest.mark.parametrize("kind", GENERALS)
    def test_conversations_are_encoded_as_transformers_encodes_them(self, kind: str, tmp_path: Path) -> None:
        check_conversations(tiny_general(tmp_path, kind), (1, 0, 2))

    @pytest.mark.parametrize("kind", GENERALS)
    def test_a_placeholder_that_callers_type_is_text(self, kind: str, tmp_path: Path) -> None:
        checkpoint = resolve(tiny_general(tmp_path, kind))
        builder, layout = PromptBuilder(checkpoint, Limits()), layout_for(checkpoint)
        name = builder.tokenizer.id_to_token(checkpoint.require_image_token())
        (case,) = cases((1,), sizes=((60, 100),))
        typed = f"{name} Is {layout.mark} a cat?"
        prompt = builder.build([Case(typed, case.pictures).message])
        assert (prompt.token_ids == checkpoint.image_token_id).sum() == prompt.pictures[0].rows
        assert typed in builder.decode(prompt.token_ids.tolist())


class TestNames:
    @pytest.mark.parametrize("kind", ["internvl", "aya_vision", "mistral3", "pixtral", "vipllava"])
    def test_newer_names_hold_the_same_weights(self, kind: str, tmp_path: Path) -> None:
        """Those of transformers' own modules, where models were published under others."""
        published, newer = tiny_general(tmp_path / "a", kind), tiny_general(tmp_path / "b", kind, new_names=True)
        names = [set(load_file(path / "model.safetensors")) for path in (published, newer)]
        assert names[0].isdisjoint(names[1])
        one, other = (build_model(resolve(p), torch.float32, torch.device("cpu")).decoder for p in (published, newer))
        assert isinstance(one, general.GeneralDecoder)
        assert isinstance(other, general.GeneralDecoder)
        theirs = other.model.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in one.model.state_dict().items())


class TestRefusals:
    def test_an_architecture_that_transformers_lacks(self, tmp_path: Path) -> None:
        path = edited(tiny_general(tmp_path, "vipllava"), architectures=["SeeingForConditionalGeneration"])
        refused(path, "SeeingForConditionalGeneration are not served: neither mmserve nor transformers")

    def test_one_that_sees_nothing_is_not_tried(self, tmp_path: Path) -> None:
        path = edited(tiny_general(tmp_path, "vipllava"), architectures=["MambaForCausalLM"], vision_config=None)
        refused(path, "MambaForCausalLM are not served; served: ")

    @pytest.mark.parametrize("kind", sorted(layouts.REFUSED))
    def test_models_that_are_known_not_to_fit(self, kind: str, tmp_path: Path) -> None:
        path = edited(tiny_general(tmp_path, "vipllava"), architectures=["Some"], model_type=kind)
        refused(path, f"models of type {kind} are not served: .*{layouts.REFUSED[kind][:20]}")

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"text_config": {"layer_types": ["conv", "full_attention"]}}, "layers of kind conv keep something else"),
            ({"text_config": {"attn_logit_softcapping": 50.0}}, "caps the scores of attention"),
            ({"text_config": {"rope_scaling": {"type": "dynamic", "factor": 2.0}}}, "depend on how long a prompt is"),
            ({"quantization_config": {"quant_method": "awq"}}, "its weights are quantised"),
            ({"is_encoder_decoder": True}, "it is an encoder-decoder model"),
        ],
    )
    def test_configurations_that_are_not_served(self, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
        path = tiny_general(tmp_path, "vipllava")
        config = json.loads((path / "config.json").read_text())
        refused(edited(path, **changes | {"text_config": config["text_config"] | changes.get("text_config", {})}), says)

    def test_a_window_that_attention_is_not_told_of(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then only masks know of it, and ours are others."""
        from transformers.models.cohere2 import modeling_cohere2

        theirs = modeling_cohere2.Cohere2Attention.__init__

        def changed(self: Any, *given: Any, **others: Any) -> None:
            theirs(self, *given, **others)
            self.sliding_window = None

        monkeypatch.setattr(modeling_cohere2.Cohere2Attention, "__init__", changed)
        refused(
            tiny_general(tmp_path, "aya_vision"),
            "layer 0 attends through a window of None, where config.json says 4096",
        )

    @pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "linear_2.weight"])
    def test_a_tensor_is_missing_or_misshapen(self, name: str, tmp_path: Path) -> None:
        path = tiny_general(tmp_path, "vipllava")
        tensors = load_file(path / "model.safetensors")
        (whole,) = [each for each in tensors if each.endswith(name)]
        value = tensors.pop(whole)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        refused(path, rf"lack what config.json asks for: .*{name.removeprefix('model.')}")
        save_file({**tensors, whole: value[:, :5].contiguous()}, path / "model.safetensors", metadata={"format": "pt"})
        refused(path, "transformers cannot load the weights in |misfit what config.json")

    def test_a_tensor_belongs_to_nothing(self, tmp_path: Path) -> None:
        path = tiny_general(tmp_path, "vipllava")
        tensors = {**load_file(path / "model.safetensors"), "audio_tower.w": torch.ones(1)}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        refused(path, r"hold more than what config.json asks for: audio_tower\.w")

    def test_a_processor_cannot_be_read(self, tmp_path: Path) -> None:
        path = edited(tiny_general(tmp_path, "idefics3"), "preprocessor_config.json", image_processor_type="Nothing")
        refused(path, "the processor in .* cannot be read")

    def test_pictures_whose_tokens_see_each_other_though_that_is_not_known(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layouts, "BOTH_WAYS", frozenset())
        refused(tiny_general(tmp_path, "gemma3"), r"Gemma3ForCon.* answer to a small picture came out .* off")

    def test_a_processor_needs_a_package_that_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
        refused(tiny_general(tmp_path, "smolvlm"), "cannot be read: Package `num2words` is required")

    def test_code_that_came_with_a_model_is_not_run(self, tmp_path: Path) -> None:
        path = tiny_general(tmp_path, "vipllava")
        (path / "evil.py").write_text("raise SystemExit('this must never run')\n")
        classes = {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M", "AutoProcessor": "evil.P"}
        for file in ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
            edited(path, file, auto_map=classes | {"AutoImageProcessor": "evil.I", "AutoTokenizer": ["evil.T", None]})
        build_engine(resolve(path), CONFIG).close()

    @pytest.mark.parametrize(
        "damage",
        [
            {"forget": True},  # a part of the prompt is not seen again
            {"shift": 1},  # positions that are one off
            {"both": True},  # a picture's tokens see each other in both directions
        ],
    )
    def test_the_trial_finds_what_the_configuration_does_not_say(
        self, damage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers.models.llama import modeling_llama

        theirs = modeling_llama.LlamaModel.forward

        def changed(self: Any, inputs_embeds: torch.Tensor, **others: Any) -> Any:
            length = inputs_embeds.shape[1]
            if "shift" in damage and "paged_step" in others:
                others["position_ids"] = others["position_ids"] * 2
            if "both" in damage and "paged_step" not in others:
                others["attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool)
            if "forget" in damage and "paged_step" not in others:
                seen = torch.ones(length, length, dtype=torch.bool).tril().triu(-6)
                others["attention_mask"] = seen[None, None]
            return theirs(self, inputs_embeds=inputs_embeds, **others)

        monkeypatch.setattr(modeling_llama.LlamaModel, "forward", changed)
        refused(tiny_general(tmp_path, "idefics3"), r"Idefics3ForCon.* answer to a small picture came out .* off")

    def test_the_trial_finds_that_a_model_does_not_hand_down_what_attention_needs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers.models.llama import modeling_llama

        theirs = modeling_llama.LlamaModel.forward

        def changed(self: Any, *given: Any, **others: Any) -> Any:
            others.pop("paged_step", None)
            return theirs(self, *given, **others)

        monkeypatch.setattr(modeling_llama.LlamaModel, "forward", changed)
        refused(tiny_general(tmp_path, "idefics3"), "LlamaAttention is not told where keys and values are kept")

    def test_there_is_too_little_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mmserve.models.loader.room_on", lambda _device: 1000)
        refused(tiny_general(tmp_path, "vipllava"), r"the weights take 0\.0 GiB, but cpu has")
