"""What a request may carry of each kind, and what a model that does not take a kind says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmserve.config import Limits
from mmserve.errors import (
    ConfigError,
    InvalidField,
    TooManyMedia,
    TooManyPictures,
    UnsupportedMedia,
    UnsupportedPicture,
)
from mmserve.prompt import PromptBuilder
from mmserve.prompt.layouts import layout_for
from mmserve.registry import load_registry
from mmserve.types import PART_KINDS, AudioPart, ImagePart, Message, Part, TextPart, VideoPart
from tests.checkpoints.llava import tiny_llava
from tests.checkpoints.qwen2_vl import tiny_qwen2_vl
from tests.checkpoints.text import tiny_text
from tests.engine.pictures import png
from tests.vision.clips import clip


def ask(builder: PromptBuilder, *parts: Part) -> None:
    builder.build([Message("user", (*parts, TextPart("What is this?")))])


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("media") / "seeing", "llava-vicuna")


def builder_of(path: Path, **limits: int) -> PromptBuilder:
    return PromptBuilder(load_registry().resolve(str(path)), Limits(**limits))


def test_a_kind_that_a_model_does_not_take_is_named_with_those_it_takes(seeing: Path) -> None:
    with pytest.raises(UnsupportedMedia, match=r"seeing takes pictures, but no sounds: .*") as caught:
        ask(builder_of(seeing), ImagePart(png("red")), AudioPart(b"RIFF"))
    assert (caught.value.code, caught.value.param) == ("unsupported_media", "messages[0].content[1]")
    with pytest.raises(UnsupportedMedia, match="takes pictures, but no videos"):
        ask(builder_of(seeing), VideoPart(b""))


def test_a_model_of_text_says_so_of_every_kind(tmp_path: Path) -> None:
    builder = builder_of(tiny_text(tmp_path / "reading", "qwen2"))
    for part, error in ((ImagePart(png("red")), UnsupportedPicture), (VideoPart(b""), UnsupportedMedia)):
        with pytest.raises(error, match="reads text only"):
            ask(builder, part)


def test_a_model_may_be_kept_to_some_kinds(tmp_path: Path) -> None:
    checkpoint = load_registry().resolve(str(tiny_qwen2_vl(tmp_path / "q")))
    assert layout_for(checkpoint).kinds == ("image", "video")
    only = PromptBuilder(replace(checkpoint, media=("image",)), Limits())
    with pytest.raises(UnsupportedMedia, match="takes pictures, but no videos"):
        ask(only, VideoPart(b""))
    ask(only, ImagePart(png("red")))
    frames = PromptBuilder(replace(checkpoint, media=("video",)), Limits())
    with pytest.raises(UnsupportedMedia, match="takes videos, but no pictures"):
        ask(frames, ImagePart(png("red")))
    ask(frames, VideoPart(clip(1.0)))
    with pytest.raises(ConfigError, match="takes image, video, so media cannot name audio"):
        layout_for(replace(checkpoint, media=("image", "audio")))


def test_each_kind_has_a_limit_of_its_own(seeing: Path) -> None:
    builder = builder_of(seeing, max_pictures=2, max_videos=1, max_sounds=1)
    with pytest.raises(TooManyPictures, match="3 pictures, but at most 2"):
        ask(builder, *[ImagePart(png("red"))] * 3)
    with pytest.raises(TooManyMedia, match="2 videos, but at most 1") as caught:
        ask(builder, *[VideoPart(b"")] * 2)
    assert (caught.value.code, caught.value.param) == ("too_many_media", "messages")
    with pytest.raises(TooManyMedia, match="2 sounds, but at most 1"):
        ask(builder, *[AudioPart(b"")] * 2)


def test_every_part_of_media_has_a_kind() -> None:
    assert sorted(PART_KINDS.values()) == ["audio", "image", "video"]


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"fps": 0.0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"fps": 1000.0}, "fps"),
        ({"num_frames": 0}, "num_frames"),
        ({"max_frames": -1}, "max_frames"),
        ({"num_frames": 4, "fps": 1.0}, "fps"),
    ],
)
def test_wishes_about_frames_are_checked(wish: dict[str, float], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        VideoPart(b"", **wish)  # type: ignore[arg-type]
    assert caught.value.param == param
