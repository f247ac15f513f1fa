from __future__ import annotations

import shutil
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from mmserve.checkpoint import Checkpoint
from mmserve.errors import CheckpointError, ConfigError
from mmserve.prompt import Detokenizer, PromptBuilder, TokenTable
from tests.checkpoints.tokenizer import sentencepiece_tokenizer_json

TEXTS = [
    "What is in this picture?",
    "一只黑色的猫。",
    "👩‍👩‍👧‍👦 flags 🇨🇭",
    "naïve café",
    "\ufdd0\x00\x7f",
    "a\u0301\u0323",
    " \n\t ",
]


@pytest.fixture(scope="module")
def table(checkpoint: Checkpoint) -> TokenTable:
    return TokenTable.load(checkpoint.path)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint.path / "tokenizer.json"))


def pieces(table: TokenTable, ids: list[int], step: int = 1, *, opens: bool = False) -> list[str]:
    detokenizer = Detokenizer(table, opens=opens)
    out = [detokenizer.push(ids[at : at + step]) for at in range(0, len(ids), step)]
    return [*out, detokenizer.flush()]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=40), st.sampled_from(TEXTS)), st.integers(1, 5))
def test_text_comes_back(table: TokenTable, tokenizer: Tokenizer, text: str, step: int) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(pieces(table, ids, step)) == tokenizer.decode(ids)
    if "<|" not in text:
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.integers(0, 515), max_size=40), st.integers(1, 5))
def test_any_ids_give_what_the_tokenizer_decodes_at_once(
    table: TokenTable, tokenizer: Tokenizer, ids: list[int], step: int
) -> None:
    assert "".join(pieces(table, ids, step)) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=12))
def test_broken_utf8_is_replaced_as_the_tokenizer_replaces_it(
    table: TokenTable, tokenizer: Tokenizer, data: list[int]
) -> None:
    id_of = {table.bytes_of(id_): id_ for id_ in range(490)}
    ids = [id_of[bytes([byte])] for byte in data]
    assert "".join(pieces(table, ids)) == bytes(data).decode("utf-8", "replace") == tokenizer.decode(ids)


def test_an_unfinished_character_is_held_back(table: TokenTable) -> None:
    id_of = {table.bytes_of(id_): id_ for id_ in range(490)}
    ids = [id_of[bytes([byte])] for byte in "a猫".encode()]
    assert pieces(table, ids) == ["a", "", "", "猫", ""]
    assert pieces(table, ids[:-1]) == ["a", "", "", "�"]


def test_special_tokens_are_skipped_and_padding_rows_are_empty(table: TokenTable, checkpoint: Checkpoint) -> None:
    end = checkpoint.eos_token_ids[0]
    assert end in table.special_ids
    assert pieces(table, [end, 505, 511]) == ["", "", "", ""]
    assert table.bytes_of(505) == b""
    assert (table.text_of(end), table.bytes_of(end)) == ("<|im_end|>", b"<|im_end|>")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 511), max_size=40), st.integers(1, 5))
def test_special_tokens_are_spelled_out_where_that_is_wanted(
    table: TokenTable, tokenizer: Tokenizer, ids: list[int], step: int
) -> None:
    detokenizer = Detokenizer(table, special=True)
    whole = "".join(detokenizer.push(ids[at : at + step]) for at in range(0, len(ids), step)) + detokenizer.flush()
    assert whole == b"".join(map(table.bytes_of, ids)).decode("utf-8", "replace")
    if not any(id_ in table.special_ids for id_ in ids):
        assert whole == tokenizer.decode(ids)


def test_special_tokens_inside_a_character_do_not_break_it(table: TokenTable, checkpoint: Checkpoint) -> None:
    id_of = {table.bytes_of(id_): id_ for id_ in range(490)}
    first, *rest = (id_of[bytes([byte])] for byte in "é".encode())
    assert "".join(pieces(table, [first, checkpoint.eos_token_ids[0], *rest])) == "é"


def test_added_tokens_that_are_not_special_are_text(tokenizer: Tokenizer) -> None:
    other = Tokenizer.from_str(tokenizer.to_str())
    other.add_tokens(["<tool_call>", "two words 猫"])
    table = TokenTable(other)
    ids = [*other.encode("x<tool_call>two words 猫y", add_special_tokens=False).ids]
    assert "".join(pieces(table, ids)) == other.decode(ids) == "x<tool_call>two words 猫y"


def test_a_single_token_has_a_text_for_display(table: TokenTable, tokenizer: Tokenizer) -> None:
    (picture,) = tokenizer.encode(" picture", add_special_tokens=False).ids
    assert table.text_of(picture) == " picture"
    lone = next(id_ for id_ in range(490) if table.bytes_of(id_) == b"\xe7")
    assert table.text_of(lone) == "�"


def test_each_token_costs_its_own_length(table: TokenTable) -> None:
    lone = next(id_ for id_ in range(490) if table.bytes_of(id_) == b"\xe7")

    def cpu_seconds(count: int) -> float:
        detokenizer = Detokenizer(table)
        start = time.thread_time()
        for _ in range(count):
            detokenizer.push((lone,))
        return time.thread_time() - start

    quarter = min(cpu_seconds(5_000) for _ in range(3))
    assert min(cpu_seconds(20_000) for _ in range(3)) < 8 * quarter + 0.01


def test_other_kinds_of_tokenizers_are_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    with pytest.raises(ConfigError, match="byte-level"):
        TokenTable(tokenizer)
    tokenizer.decoder = decoders.Metaspace()  # without bytes to fall back to, some texts cannot be written
    with pytest.raises(ConfigError, match="byte-level"):
        TokenTable(tokenizer)


def test_a_missing_or_damaged_tokenizer_is_a_checkpoint_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        TokenTable.load(tmp_path)
    shutil.copytree(checkpoint.path, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    with pytest.raises(CheckpointError, match="cannot be read"):
        TokenTable.load(tmp_path / "copy")


def test_a_builders_tokenizer_serves_too(builder: PromptBuilder, table: TokenTable) -> None:
    shared = TokenTable(builder.tokenizer)
    assert [shared.bytes_of(id_) for id_ in range(512)] == [table.bytes_of(id_) for id_ in range(512)]


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "metaspace"])
def sentencepiece(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_str(sentencepiece_tokenizer_json(("<image>",), legacy=request.param))


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=40), st.sampled_from(TEXTS)), st.integers(1, 5))
def test_sentencepiece_text_comes_back(sentencepiece: Tokenizer, text: str, step: int) -> None:
    ids = sentencepiece.encode(text, add_special_tokens=False).ids
    table = TokenTable(sentencepiece)
    whole = "".join(pieces(table, ids, step, opens=True))
    assert whole == sentencepiece.decode(ids)
    if not any(name in text for name in ("<", "▁")):
        assert whole in (text, text.removeprefix(" "))  # some put no blank before a text that has one


def test_only_an_answers_own_opening_blank_is_left_out(sentencepiece: Tokenizer) -> None:
    table = TokenTable(sentencepiece)
    ids = sentencepiece.encode("a cat", add_special_tokens=False).ids
    assert "".join(pieces(table, ids, opens=True)) == "a cat"
    assert "".join(pieces(table, ids)) == " a cat"
    assert "".join(pieces(table, ids + ids, opens=True)) == "a cat a cat"
    assert table.special_ids >= {0, 1, 2}
    assert "".join(pieces(table, [1, *ids, 2], opens=True)) == "a cat"


def test_byte_level_answers_keep_their_blanks(table: TokenTable, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(" a cat", add_special_tokens=False).ids
    assert "".join(pieces(table, ids, opens=True)) == " a cat"
