"""Pictures of which more or less detail is wanted, through prompt, caches and model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.errors import InvalidField
from mmserve.models.families import build_model
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import Detail, ImagePart, Message, Prompt, Request, TextPart
from tests.checkpoints import tiny_llava, tiny_qwen2_vl
from tests.engine.pictures import png
from tests.models.equality import resolve
from tests.proofs.serving import serve
from vision.decode import decode
from vision.pixels import processor_for

BLOCK = 28 * 28
NOISE = png("noise", (300, 200))
WISHES = (Detail(), Detail("low"), Detail(max_pixels=6 * BLOCK), Detail(min_pixels=50 * BLOCK), Detail("high"))
KINDS = ("qwen2-vl", "llava-vicuna", "llava-next-mistral", "llava-onevision")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detail")
    made = {kind: tiny_llava(root / kind, kind) for kind in KINDS[1:]}
    return made | {"qwen2-vl": tiny_qwen2_vl(root / "qwen2-vl")}


def asked(builder: PromptBuilder, *wishes: Detail) -> Prompt:
    parts = tuple(ImagePart(NOISE, detail) for detail in wishes)
    return builder.build([Message("user", (*parts, TextPart("What is this?")))])


def builder_of(folder: Path) -> PromptBuilder:
    return PromptBuilder(resolve(folder), Limits())


class TestIdentity:
    def test_the_detail_enters_the_pictures_identity_wherever_it_has_an_effect(self, folders: dict[str, Path]) -> None:
        builder = builder_of(folders["qwen2-vl"])
        wishes = [Detail(), *(Detail(max_pixels=k * BLOCK) for k in (4, 5, 6)), Detail(min_pixels=5 * BLOCK)]
        contents = [asked(builder, wish).pictures[0].content for wish in wishes]
        assert len(set(contents)) == len(wishes)
        for kind in ("llava-next-mistral", "llava-onevision"):
            builder = builder_of(folders[kind])
            whole, tiles = asked(builder, Detail("low")).pictures[0], asked(builder, Detail()).pictures[0]
            assert whole.content != tiles.content
            assert whole.rows < tiles.rows

    def test_a_detail_without_effect_shares_the_default_entry(self, folders: dict[str, Path]) -> None:
        for kind in KINDS:
            builder = builder_of(folders[kind])
            default, high = (asked(builder, wish).pictures[0] for wish in (Detail(), Detail("high")))
            assert default.content == high.content
        builder = builder_of(folders["llava-vicuna"])
        assert len({asked(builder, wish).pictures[0].content for wish in WISHES}) == 1

    def test_two_details_of_one_picture_never_mix_in_the_caches(self, folders: dict[str, Path]) -> None:
        """Each answer, after all others went through the caches, is that of an engine without any."""
        for kind in KINDS:
            checkpoint = resolve(folders[kind])
            prompts = {str(i): asked(builder_of(folders[kind]), wish) for i, wish in enumerate(WISHES)}
            sampling = SamplingParams(max_tokens=6, ignore_eos=True)
            requests = [Request(name, prompt, sampling) for name, prompt in prompts.items()]
            config = EngineConfig(device="cpu", check_invariants=True, kv_slots=4096)
            plain = build_engine(checkpoint, EngineConfig(device="cpu", kv_slots=4096, reuse=False))
            cached = build_engine(checkpoint, config)
            try:
                expected = {name: ids for each in requests for name, ids in serve(plain, [each]).items()}
                assert serve(cached, requests) == expected
                assert serve(cached, requests[::-1]) == expected
                contents = {prompt.pictures[0].content for prompt in prompts.values()}
                assert cached.stats()["pictures_encoded"] == len(contents)
            finally:
                plain.close()
                cached.close()


def test_one_prompt_may_look_at_its_pictures_differently(folders: dict[str, Path]) -> None:
    builder = builder_of(folders["qwen2-vl"])
    small, large = Detail(max_pixels=4 * BLOCK), Detail()
    prompt = asked(builder, small, large)
    assert [picture.rows for picture in prompt.pictures] == [
        asked(builder, wish).pictures[0].rows for wish in (small, large)
    ]
    assert prompt.picture_tokens == sum(picture.rows for picture in prompt.pictures)


@pytest.mark.parametrize("wish", [Detail(max_pixels=10**9), Detail(min_pixels=1)])
def test_limits_that_the_model_does_not_allow_name_their_place(wish: Detail, folders: dict[str, Path]) -> None:
    [name] = wish.said()
    with pytest.raises(InvalidField, match=r"between 784 and 50,176") as caught:
        asked(builder_of(folders["qwen2-vl"]), Detail(), wish)
    assert caught.value.param == f"messages[0].content[1].{name}"


@pytest.mark.parametrize("kind", ["llava-next-mistral", "llava-onevision"])
def test_low_detail_is_the_base_tile_and_a_newline(kind: str, folders: dict[str, Path]) -> None:
    checkpoint = resolve(folders[kind])
    model = build_model(checkpoint, torch.float32, torch.device("cpu"))
    assert model.pixels is not None
    assert model.encoder is not None
    rows = {}
    for detail in (Detail("low"), Detail()):
        [picture] = asked(PromptBuilder(checkpoint, Limits()), detail).pictures
        pixels = processor_for(model.pixels, detail)(decode(picture.data, picture.header), picture.grid)
        [rows[detail.level]] = model.encoder.encode([pixels])
        assert len(rows[detail.level]) == picture.rows
    side = checkpoint.config["vision_config"]["image_size"] // checkpoint.config["vision_config"]["patch_size"]
    assert len(rows["low"]) == side**2 + 1
    if kind == "llava-next-mistral":  # LLaVA-OneVision sees it as it sees a picture among others: padded, not squeezed
        torch.testing.assert_close(rows["low"][:-1], rows["auto"][: side**2])
    assert torch.equal(rows["low"][-1], rows["auto"][-1])
