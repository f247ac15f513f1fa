from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vision.files import encode, exif_block, noise
from vision.exif import ORIENTATION, orientation, read_tags


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("value", range(1, 9))
def test_reads_the_orientation_in_both_byte_orders(order: str, kind: int, value: int) -> None:
    assert orientation(exif_block(value, order, kind)) == value


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_out_of_range_counts_as_none(value: int) -> None:
    assert orientation(exif_block(value)) == 1


def test_an_orientation_of_another_type_or_count_counts_as_none() -> None:
    block = bytearray(exif_block(6))
    block[12:14] = struct.pack("<H", 7)  # UNDEFINED
    assert orientation(bytes(block)) == 1
    block = bytearray(exif_block(6))
    block[14:18] = struct.pack("<L", 2)
    assert orientation(bytes(block)) == 1


def test_the_first_of_two_entries_counts() -> None:
    entry = exif_block(6)[10:22]
    other = exif_block(3)[10:22]
    block = b"II" + struct.pack("<HLH", 42, 8, 2) + entry + other + bytes(4)
    assert orientation(block) == 6


def test_reads_bigtiff() -> None:
    entry = struct.pack("<HHQHHL", 274, 3, 1, 8, 0, 0)
    block = b"II" + struct.pack("<HHHQQ", 43, 8, 0, 16, 1) + entry + bytes(8)
    assert read_tags(block, (ORIENTATION,)) == {ORIENTATION: 8}
    width = struct.pack("<HHQQ", 256, 16, 1, 2**40)
    block = b"II" + struct.pack("<HHHQQ", 43, 8, 0, 16, 1) + width + bytes(8)
    assert read_tags(block, (256,)) == {256: 2**40}


def test_reads_the_size_of_a_tiff_file() -> None:
    assert read_tags(encode(noise(21, 13), "TIFF"), (256, 257)) == {256: 21, 257: 13}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"II",
        b"XX*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II\x2c\0\x08\0\0\0",
        exif_block(6)[:-8],
        b"II" + struct.pack("<HHHQ", 43, 8, 0, 2**63),
        b"II" + struct.pack("<HHHQQ", 43, 8, 0, 16, 2**60),
        b"II" + struct.pack("<HHHQ", 43, 4, 0, 16),
    ],
)
def test_damage_is_a_value_error_and_no_orientation(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_tags(data, (ORIENTATION,))
    assert orientation(data) == 1


@given(st.binary(max_size=80), st.sampled_from([b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b""]))
def test_any_bytes_give_an_orientation(data: bytes, start: bytes) -> None:
    assert 1 <= orientation(start + data) <= 8


@given(st.integers(1, 8), st.data())
def test_a_damaged_byte_never_raises(value: int, data: st.DataObject) -> None:
    block = bytearray(exif_block(value))
    block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    assert 1 <= orientation(bytes(block)) <= 8
