"""CogVLM and CogVLM2 answer as the plain reference does, and every published tensor has its one place."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.errors import ConfigError, InvalidField, TooManyPictures
from mmserve.models import cogvlm
from mmserve.models.families import build_model
from mmserve.models.loader import destinations
from mmserve.prompt import PromptBuilder, layout_for
from mmserve.registry import ModelEntry, Registry
from mmserve.sampling import SamplingParams
from mmserve.types import Message, Prompt, Request, TextPart
from tests.checkpoints.cogvlm import COGVLMS, PUBLISHED, published_tensors, tiny_cogvlm
from tests.models.cogvlm_reference import CogReference, positions_of
from tests.models.equality import ROOMY, Case, cases, check_equality, resolve
from tests.models.reference import Paged, Progress, Reference
from tests.proofs.serving import serve
from vision.pixels import Pixels

PICTURES = (0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1)


def published(kind: str, path: Path) -> Checkpoint:
    """A checkpoint with the settings of the published one, and the files of a small one."""
    small = resolve(tiny_cogvlm(path, kind))
    return dataclasses.replace(small, config=PUBLISHED[kind], max_model_len=2048)


@pytest.mark.parametrize("kind", COGVLMS)
class TestAnswers:
    def test_twenty_questions(self, kind: str, tmp_path: Path) -> None:
        path = tiny_cogvlm(tmp_path, kind)
        tally = check_equality(path, cases(PICTURES), reference=CogReference(path))
        assert (tally.compared, tally.refused) == (80, 0)
        assert tally.excused <= 1

    @pytest.mark.parametrize(
        "changes",
        [
            {"template_version": "vqa"},
            {"template_version": "base", "rms_norm_eps": 0.1},
            {"num_attention_heads": 8, "vision_config": {"hidden_act": "gelu", "layer_norm_eps": 0.1, "num_heads": 8}},
            {"vision_config": {"image_size": 84, "num_positions": 37}, "pad_token_id": 5},
        ],
    )
    def test_settings(self, kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
        path = tiny_cogvlm(tmp_path, kind, **changes)
        assert check_equality(path, cases((1, 0, 1)), reference=CogReference(path)).excused == 0

    def test_conversations(self, kind: str, tmp_path: Path) -> None:
        """The picture stands in front, whichever message brings it, and a longer history finds it cached."""
        path = tiny_cogvlm(tmp_path, kind)
        reference, builder = CogReference(path), PromptBuilder(resolve(path), Limits())
        picture = cases((1,), sizes=((60, 100),))[0].pictures
        said = [("What is this?", "A dog, it's hidden."), ("  Where?\n", "猫"), ("Is there a red circle? ", "No.")]
        engine = build_engine(resolve(path), ROOMY)
        try:
            for turns in range(4):
                for shown in range(turns + 1):
                    messages = []
                    for i, (question, answer) in enumerate([*said[:turns], ("And now?", "")]):
                        messages.append(Case(question, picture if i == shown else ()).message)
                        messages.append(Message("assistant", (TextPart(answer),)))
                    prompt = builder.build(messages[:-1])
                    right = reference.conversation(picture, "And now?", 6, said[:turns])
                    assert prompt.token_ids.tolist() == right.prompt_ids
                    assert answered(engine, prompt) == right.token_ids
            assert engine.stats()["pictures_encoded"] == 1
        finally:
            engine.close()

    def test_any_cut_of_a_prompt(self, kind: str, tmp_path: Path) -> None:
        """Every row's logits, wherever a prompt is cut in two: in front of the picture, inside it, and behind it."""
        path = tiny_cogvlm(tmp_path, kind)
        checkpoint, reference = resolve(path), CogReference(path)
        picture = cases((1,), sizes=((97, 97),))[0].pictures[0]
        prompt = PromptBuilder(checkpoint, Limits()).build([Case("Where is it?", (picture,)).message])
        ids, kinds = reference.prompt(1, "Where is it?")
        right = reference.logits(ids, kinds, reference.encode(picture))
        model = build_model(checkpoint, torch.float32, torch.device("cpu"))
        rows = encoded(model.encoder, model.pixels, picture, prompt)
        start, end, _ = prompt.ranges[0]
        positions, _ = layout_for(checkpoint).positions(prompt)
        whole = Reference(
            torch.tensor(ids),
            torch.from_numpy(positions),
            right,
            None,
            [],
            rows,
            torch.arange(start, end),
            [],
        )
        for cut in range(len(ids)):
            paged, sequence = Paged(model.decoder, slots=200), Progress(whole)
            pieces = [count for count in (cut, len(ids) - cut) if count]
            found = [paged.step([(sequence, count)], every_row=True)[0] for count in pieces]
            torch.testing.assert_close(torch.cat(found), right, atol=1e-4, rtol=1e-4)

    def test_the_last_row_is_texts(self, kind: str, tmp_path: Path) -> None:
        """The expert takes a picture's tokens that another of its tokens follows; so the learned row at its end, and
        not that at its beginning, is left to the language model's own weights."""
        checkpoint = resolve(tiny_cogvlm(tmp_path, kind))
        model = build_model(checkpoint, torch.float32, torch.device("cpu"))
        picture = Image.new("RGB", (50, 20), "red")
        prompt = PromptBuilder(checkpoint, Limits()).build([Case("?", (picture,)).message])
        rows = encoded(model.encoder, model.pixels, picture, prompt)
        assert rows[:, -1].tolist() == [1.0] * 26 + [0.0]
        tensors = load_file(checkpoint.path / "model.safetensors")
        assert torch.equal(rows[0, :-1], tensors["model.vision.boi"][0, 0])
        assert torch.equal(rows[-1, :-1], tensors["model.vision.eoi"][0, 0])
        assert positions_of([0] + [1] * 27 + [0, 0]) == [0, 1, *[2] * 25, 3, 4, 5]


@pytest.mark.parametrize("kind", COGVLMS)
class TestCounts:
    def test_rows_are_the_same_for_a_thousand_sizes(self, kind: str, tmp_path: Path) -> None:
        checkpoint, rng = published(kind, tmp_path), random.Random(0)
        geometry = layout_for(checkpoint).geometry
        assert geometry is not None
        sizes = [(int(5000 ** rng.random()), int(5000 ** rng.random())) for _ in range(1000)]
        assert {geometry.measure(*size)[1] for size in sizes} == {1227 if kind == "cogvlm" else 2306}

    def test_prompts_make_room_for_them(self, kind: str, tmp_path: Path) -> None:
        path, rng = tiny_cogvlm(tmp_path, kind), random.Random(0)
        builder, reference = PromptBuilder(resolve(path), Limits()), CogReference(path)
        for _ in range(60):
            size = (int(700 ** rng.random()), int(700 ** rng.random()))
            prompt = builder.build([Case("?", (Image.new("RGB", size),)).message])
            assert prompt.token_ids.tolist() == reference.prompt(1, "?")[0]
            assert prompt.picture_tokens == 27


@pytest.mark.parametrize("kind", COGVLMS)
class TestNames:
    def test_every_published_tensor_has_one_place(self, kind: str, tmp_path: Path) -> None:
        """At the published sizes: none is left over, none is missing, and shapes agree."""
        decoder, encoder = cogvlm.modules(published(kind, tmp_path))
        places = [(cogvlm.decoder_part, destinations(decoder)), (encoder.rename, destinations(encoder))]
        tensors = published_tensors(PUBLISHED[kind])
        assert len(tensors) == {"cogvlm": 32 * 13 + 3 + 63 * 12 + 12, "cogvlm2": 32 * 14 + 3 + 63 * 12 + 14}[kind]
        for name, shape in tensors.items():
            targets = [(target, own) for rename, own in places if (target := rename(name)) is not None]
            if name.endswith("rotary_emb.inv_freq"):
                assert targets == []
                continue
            assert len(targets) == 1, name
            target, own = targets[0]
            assert tuple(own.pop(target).shape) == shape, name
        assert [list(own) for _, own in places] == [[], []]

    def test_the_published_sizes(self, kind: str, tmp_path: Path) -> None:
        """17 and 19 billion parameters, which is what the models are named for."""
        decoder, encoder = cogvlm.modules(published(kind, tmp_path))
        count = sum(parameter.numel() for each in (decoder, encoder) for parameter in each.parameters())
        assert count == {"cogvlm": 17_639_685_376, "cogvlm2": 19_503_105_280}[kind]

    def test_tables_of_rotations_are_not_needed(self, kind: str, tmp_path: Path) -> None:
        """Files without them, as older code saved them, hold the same model."""
        path = tiny_cogvlm(tmp_path, kind)
        before = build_model(resolve(path), torch.float32, torch.device("cpu")).decoder
        tensors = load_file(path / "model.safetensors")
        save_file({name: tensors[name] for name in tensors if "inv_freq" not in name}, path / "model.safetensors")
        after = build_model(resolve(path), torch.float32, torch.device("cpu")).decoder
        assert isinstance(before, torch.nn.Module)
        assert isinstance(after, torch.nn.Module)
        one, other = before.state_dict(), after.state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_code_that_came_with_a_model_does_not_run(self, kind: str, tmp_path: Path) -> None:
        path = tiny_cogvlm(tmp_path, kind)
        assert (path / "modeling_cogvlm.py").exists()
        engine = build_engine(resolve(path), ROOMY)
        (case,) = cases((1,))
        answered(engine, PromptBuilder(resolve(path), Limits()).build([case.message]))
        engine.close()
        assert not (path / "remote-code-ran").exists()


def test_a_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    """The first CogVLM is published without: it answers the same with Vicuna's from another folder."""
    apart = tiny_cogvlm(tmp_path / "model", "cogvlm", tokenizer=tmp_path / "vicuna")
    entry = ModelEntry("cog", "cogvlm", str(apart), tokenizer=str(tmp_path / "vicuna"))
    checkpoint = Registry({"cog": entry}, tmp_path).resolve("cog")
    (case,) = cases((1,))
    right = CogReference(apart, tmp_path / "vicuna").answer(case.pictures, case.question, 6, to_the_end=True)
    prompt = PromptBuilder(checkpoint, Limits()).build([case.message])
    assert prompt.token_ids.tolist() == right.prompt_ids
    engine = build_engine(checkpoint, ROOMY)
    assert answered(engine, prompt) == right.token_ids
    engine.close()


class TestRefusals:
    @pytest.mark.parametrize("kind", COGVLMS)
    def test_a_second_picture(self, kind: str, tmp_path: Path) -> None:
        builder = PromptBuilder(resolve(tiny_cogvlm(tmp_path, kind)), Limits(max_pictures=8))
        (case,) = cases((2,))
        with pytest.raises(TooManyPictures, match="2 pictures, but at most 1 "):
            builder.build([case.message])
        first, second = (dataclasses.replace(case, pictures=(picture,)).message for picture in case.pictures)
        with pytest.raises(TooManyPictures, match="2 pictures, but at most 1 "):
            builder.build([first, Message("assistant", (TextPart("A cat."),)), second])
        with pytest.raises(TooManyPictures, match="2 pictures, but at most 1 "):
            builder.build_text("<|picture|><|picture|>?", [b"", b""])

    def test_a_system_message(self, tmp_path: Path) -> None:
        builder = PromptBuilder(resolve(tiny_cogvlm(tmp_path, "cogvlm2")), Limits())
        with pytest.raises(InvalidField, match="no system message: put the instruction into the question"):
            builder.build([Message("system", (TextPart("Be brief."),)), Message("user", (TextPart("hi"),))])

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda c: c.update(architectures=["CogAgentForCausalLM"]), "CogAgentForCausalLM are not served"),
            (lambda c: c.update(template_version="grounding"), "must be chat, vqa, base, not 'grounding'"),
            (lambda c: c.update(num_multi_query_heads=3), "4 heads over 3 unevenly"),
            (lambda c: c.update(hidden_act="relu"), "hidden_act 'relu'"),
            (lambda c: c.update(intermediate_size=None), "give intermediate_size"),
            (lambda c: c.pop("vision_config"), "no vision_config"),
            (lambda c: c["vision_config"].update(image_size=126), "9 patches a side, which are no blocks of 2 by 2"),
            (lambda c: c["vision_config"].update(patch_size=None), "in patches of None"),
            (lambda c: c["vision_config"].update(patch_size=141), "0 patches a side"),
            (lambda c: c["vision_config"].update(num_positions=100), "100 positions, but .* 100 patches and a class"),
            (lambda c: c["vision_config"].update(num_heads=5), "32 into 5 heads unevenly"),
            (lambda c: c["vision_config"].pop("hidden_size"), "must give hidden_size"),
            (lambda c: c["vision_config"].update(hidden_act="elu"), "the activation 'elu'"),
            (lambda c: c.pop("num_multi_query_heads"), r"has shape \[128, 64\], but config.json asks for \[192, 64\]"),
        ],
    )
    def test_settings_that_make_no_sense(self, change: Any, says: str, tmp_path: Path) -> None:
        path = tiny_cogvlm(tmp_path, "cogvlm2")
        config = json.loads((path / "config.json").read_text())
        change(config)
        (path / "config.json").write_text(json.dumps(config))
        refused(path, says)

    @pytest.mark.parametrize(
        "name",
        [
            "model.layers.1.mlp.vision_mlp.up_proj.weight",
            "model.layers.2.self_attn.vision_expert_query_key_value.bias",
            "model.layers.0.self_attn.language_expert_dense.weight",
            "model.vision.conv.bias",
            "model.vision.boi",
            "model.vision.transformer.layers.2.mlp.fc2.bias",
        ],
    )
    def test_tensors_that_are_missing_or_misshapen(self, name: str, tmp_path: Path) -> None:
        path = tiny_cogvlm(tmp_path, "cogvlm2")
        tensors = load_file(path / "model.safetensors")
        whole = tensors[name]
        tensors[name] = torch.cat((whole, whole))
        save_file(tensors, path / "model.safetensors")
        refused(path, f"tensor {name.replace('.', '[.]')} in .* has shape .*, but config.json asks for")
        del tensors[name]
        save_file(tensors, path / "model.safetensors")
        refused(path, "lack .*" + name.removeprefix("model.").removeprefix("vision.").replace(".", "[.]"))

    def test_a_tensor_that_belongs_to_nothing(self, tmp_path: Path) -> None:
        path = tiny_cogvlm(tmp_path, "cogvlm")
        tensors = load_file(path / "model.safetensors")
        save_file({**tensors, "model.vision.conv.bias": torch.ones(32)}, path / "model.safetensors")
        refused(path, r"tensor model\.vision\.conv\.bias in .* has no place")

    def test_a_folder_without_tokenizer(self, tmp_path: Path) -> None:
        """As the first CogVLM is published."""
        path = tiny_cogvlm(tmp_path / "model", "cogvlm", tokenizer=tmp_path / "vicuna")
        refused(path, r"tokenizer\.json is missing: .* name that as `tokenizer` in models\.yaml")


def refused(path: Path, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        build_engine(resolve(path), EngineConfig(device="cpu", dtype="float32", kv_slots=256)).close()
    assert "\n" not in caught.value.message


def answered(engine: Any, prompt: Prompt) -> list[int]:
    sampling = SamplingParams(max_tokens=6, ignore_eos=True, seed=1)
    return serve(engine, [Request("only", prompt, sampling)])["only"]


def encoded(encoder: Any, processor: Any, picture: Image.Image, prompt: Prompt) -> Tensor:
    pixels: Pixels = processor(picture, prompt.pictures[0].grid)
    (rows,) = encoder.encode([pixels])
    assert isinstance(rows, Tensor)
    return rows
