"""Chosen tokens -> text, with and without the names of special tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.engine.output import OutputStream
from mmserve.engine.sequence import Sequence as RequestState
from mmserve.prompt import TokenTable
from mmserve.prompt.detokenizer import load_tokenizer
from mmserve.sampling import SamplingParams
from mmserve.types import Prompt, Request

BOX = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>"


@pytest.fixture(scope="module")
def box(checkpoint: Checkpoint) -> list[int]:
    """The tokens of a box in Qwen-VL's format, and the end of the turn."""
    return [*load_tokenizer(checkpoint.path).encode(BOX).ids, checkpoint.eos_token_ids[0]]


def texts(checkpoint: Checkpoint, tokens: Sequence[int], **sampling: object) -> list[str]:
    """What each token adds, to the last."""
    params = SamplingParams().replace(**sampling)
    request = Request("0", Prompt(np.zeros(3, dtype=np.int64)), params)
    seq = RequestState(request, (), np.zeros((3, 3), dtype=np.int64), 3, 0)
    stream = OutputStream(seq, TokenTable.load(checkpoint.path), checkpoint.eos_token_ids)
    said = []
    for token in tokens:
        seq.append([token])
        event = stream.push(token, None)
        said.append(event.text)
        if event.last:
            break
    return said


def test_boxes_keep_their_marks_where_they_are_wanted(checkpoint: Checkpoint, box: list[int]) -> None:
    assert "".join(texts(checkpoint, box)) == "cat(1,2),(30,40)"
    marked = texts(checkpoint, box, skip_special_tokens=False)
    assert marked[0] == "<|object_ref_start|>"
    assert marked[-1] == "", "the token that ends an answer is no text"
    assert "".join(marked) == BOX


def test_an_end_that_is_ignored_is_shown(checkpoint: Checkpoint, box: list[int]) -> None:
    shown = texts(checkpoint, [*box, *box], skip_special_tokens=False, ignore_eos=True)
    assert "".join(shown) == f"{BOX}<|im_end|>{BOX}<|im_end|>"


def test_a_stop_string_may_be_a_mark(checkpoint: Checkpoint, box: list[int]) -> None:
    stopped = texts(checkpoint, box, skip_special_tokens=False, stop=("<|box_end|>",))
    assert "".join(stopped) == BOX.removesuffix("<|box_end|>")
