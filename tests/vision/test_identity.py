from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmserve.errors import UnsupportedPicture
from tests.vision.files import encode, noise
from vision.geometry import QwenGeometry
from vision.identity import canonical_json, content_hash, digest, fingerprint, pixels_hash

SETTINGS: dict[str, Any] = {
    "weights": b"w" * 32,
    "vision_config": {"depth": 2, "patch_size": 14},
    "processor": {"image_mean": [0.5, 0.5, 0.5]},
    "geometry": QwenGeometry(14, 2, 3136, 50176),
    "decoder": "rules 1",
}
PRINT = fingerprint(**SETTINGS)


@given(st.lists(st.binary(max_size=4), max_size=5), st.lists(st.binary(max_size=4), max_size=5))
def test_digests_are_equal_only_for_equal_lists_of_parts(one: list[bytes], other: list[bytes]) -> None:
    assert (digest("tag", *one) == digest("tag", *other)) == (one == other)


def test_a_byte_that_moves_across_a_boundary_changes_the_digest() -> None:
    assert len({digest("t", b"ab", b"c"), digest("t", b"a", b"bc"), digest("ta", b"b", b"c"), digest("t", b"abc")}) == 4


def test_the_digest_is_framed_sha256() -> None:
    framed = (3).to_bytes(8, "little") + b"tag" + (2).to_bytes(8, "little") + b"xy"
    assert digest("tag", b"xy") == digest("tag", bytearray(b"xy")) == digest("tag", memoryview(b"xy"))
    assert digest("tag", b"xy") == hashlib.sha256(framed).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"weights": b"v" * 32},
        {"vision_config": {"depth": 3, "patch_size": 14}},
        {"processor": {"image_mean": [0.5, 0.5, 0.4]}},
        {"geometry": QwenGeometry(14, 2, 3136, 50177)},
        {"geometry": QwenGeometry(14, 2, 3137, 50176)},
        {"decoder": "rules 2"},
    ],
)
def test_everything_that_shapes_the_rows_enters_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(**{**SETTINGS, **change}) != PRINT


def test_the_fingerprint_tells_geometries_of_other_kinds_with_equal_fields_apart() -> None:
    other = dataclasses.make_dataclass("Other", [(f.name, int) for f in dataclasses.fields(QwenGeometry)], frozen=True)
    assert fingerprint(**{**SETTINGS, "geometry": other(14, 2, 3136, 50176, None)}) != PRINT
    with pytest.raises(TypeError, match="dataclass"):
        fingerprint(**{**SETTINGS, "geometry": object()})


def test_the_fingerprint_does_not_depend_on_the_order_of_fields() -> None:
    swapped = dict(reversed(SETTINGS["vision_config"].items()))
    assert fingerprint(**{**SETTINGS, "vision_config": swapped}) == PRINT


def test_canonical_json_refuses_what_is_not_json() -> None:
    assert canonical_json({"b": 1, "a": (1, "é")}) == b'{"a":[1,"\\u00e9"],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_a_content_hash_is_full_width_and_depends_on_bytes_settings_and_salt() -> None:
    base = content_hash(b"data", PRINT)
    assert len(base) == 32
    assert base == content_hash(b"data", PRINT, "")
    others = [content_hash(b"datb", PRINT), content_hash(b"data", b"x" * 32), content_hash(b"data", PRINT, "tenant")]
    assert len({base, *others}) == 4


def test_a_salt_of_any_characters_is_accepted() -> None:
    assert content_hash(b"", PRINT, "\ud800") != content_hash(b"", PRINT, "�")


def test_hashing_is_one_pass() -> None:
    data = bytes(8_000_000)

    def cpu_seconds(run: Callable[[], object]) -> float:
        start = time.thread_time()
        run()
        return time.thread_time() - start

    once = min(cpu_seconds(lambda: hashlib.sha256(data).digest()) for _ in range(5))
    assert min(cpu_seconds(lambda: content_hash(data, PRINT)) for _ in range(5)) < 1.5 * once


def test_white_pictures_with_equal_patches_and_other_shapes_differ() -> None:
    sizes = [(224, 56), (112, 112), (56, 224)]
    arrays = [np.full((height, width, 3), 255, np.uint8) for width, height in sizes]
    images = [Image.new("RGB", size, "white") for size in sizes]
    files = [encode(image, "BMP") for image in images]
    hashes = [pixels_hash(image, PRINT) for image in images]
    hashes += [pixels_hash(array, PRINT) for array in arrays] + [content_hash(file, PRINT) for file in files]
    assert len(set(hashes)) == 9


def test_pixels_hash_depends_on_dtype_byte_order_and_mode() -> None:
    zeros = np.zeros((4, 4), np.uint16)
    variants: list[Any] = [zeros, zeros.astype(np.int16), zeros.astype(">u2"), zeros.view(np.uint8), zeros[..., None]]
    variants += [Image.new("L", (4, 8)), Image.new("P", (4, 8)), Image.new("1", (4, 8))]
    assert len({pixels_hash(x, PRINT) for x in variants}) == len(variants)


def test_pixels_hash_sees_values_not_memory_layout() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pixels_hash(array, PRINT) == pixels_hash(np.asfortranarray(array), PRINT)
    assert pixels_hash(array[:, ::-1], PRINT) == pixels_hash(array[:, ::-1].copy(), PRINT) != pixels_hash(array, PRINT)


def test_pixels_hash_sees_palette_and_transparency() -> None:
    def palette_image(colours: list[int], mode: str = "RGB", **info: Any) -> Image.Image:
        image = Image.new("P", (2, 2))
        image.putpalette(colours, mode)
        for name, value in info.items():
            image.info[name] = value
        return image

    variants = [
        palette_image([0, 0, 0, 1, 1, 1]),
        palette_image([0, 0, 0, 1, 1, 2]),
        palette_image([0, 0, 0, 1, 1, 1], transparency=0),
        palette_image([0, 0, 0, 1, 1, 1], transparency=b"\0"),
        palette_image([0, 0, 0, 255, 1, 1, 1, 128], "RGBA"),
        palette_image([0, 0, 0, 255, 1, 1, 1, 255], "RGBA"),
    ]
    assert len({pixels_hash(image, PRINT) for image in variants}) == len(variants)


def test_pixels_hash_ignores_metadata_but_not_salt() -> None:
    image = noise(5, 4)
    plain = pixels_hash(image, PRINT)
    image.getexif()[274] = 6
    image.info["dpi"] = (72, 72)
    assert pixels_hash(image, PRINT) == plain
    assert pixels_hash(image, PRINT, "salt") != plain


def test_pixels_hash_refuses_arrays_of_anything_but_numbers() -> None:
    for array in (np.array([object()]), np.array(["text"]), np.zeros(2, "u1,u1"), np.zeros(2, complex)):
        with pytest.raises(UnsupportedPicture, match="numbers"):
            pixels_hash(array, PRINT)
