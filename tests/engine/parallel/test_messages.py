"""What goes to the other ranks: all that they compute from, and nothing that only a choice needs."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest

from mmserve.cache.tier import SlotCopy
from mmserve.engine.parallel.messages import Damaged, Failed, Step, get, put, without_choices
from mmserve.engine.plan import Chunk, RowSlice, SamplingRow, SchedulerOutput
from mmserve.errors import CheckpointError
from mmserve.sampling import SamplingParams
from mmserve.types import ContentHash, Grid, ImageHeader, Picture

CONTENT = ContentHash(b"c" * 32)


def plan() -> SchedulerOutput:
    known = np.arange(100_000)
    row = SamplingRow(SamplingParams(temperature=1.0), 3, 4, known, known.tolist(), (7,))
    chunk = Chunk("a", 2, np.arange(3), np.arange(3)[None], np.arange(5), (RowSlice(CONTENT, 0, 2, 1),), row=row)
    scored = Chunk("b", 0, np.arange(3), np.arange(3)[None], np.arange(3), scored=(0, 2), targets=known, top_logprobs=5)
    copy = SlotCopy(np.arange(2), np.arange(2))
    picture = Picture(b"x" * 1_000_000, ImageHeader("PNG", 1, 1), CONTENT, Grid(1, 1, 1), 1)
    return SchedulerOutput((copy,), (("a", copy),), (CONTENT,), (picture,), (CONTENT,), (scored,), (chunk,))


def test_what_the_other_ranks_get() -> None:
    whole, lean = plan(), without_choices(plan())
    assert (lean.forget, lean.encode) == (whole.forget, whole.encode)
    assert [id_ for id_, _ in lean.fetch] == ["a"]
    assert lean.save[0].source.tolist() == [0, 1]
    for ours, its in zip(lean.chunks, whole.chunks, strict=True):
        assert (ours.sequence_id, ours.start, ours.scored, ours.media) == (
            its.sequence_id,
            its.start,
            its.scored,
            its.media,
        )
        assert all(
            np.array_equal(getattr(ours, name), getattr(its, name)) for name in ("token_ids", "positions", "slots")
        )
        assert (ours.row is None, ours.targets) == (its.row is None, None)
    assert lean.prepare == ()
    assert len(pickle.dumps(Step(whole))) > 1_500_000
    assert len(pickle.dumps(Step(lean))) < 3000


def test_messages_arrive_whole_and_the_end_is_seen() -> None:
    ours, theirs = multiprocessing.Pipe()
    put(ours, Failed(CheckpointError("no weights", param="model"), "Traceback …"))
    put(ours, Damaged(frozenset("ab")))
    failed = get(theirs)
    assert isinstance(failed.error, CheckpointError)
    assert (failed.error.message, failed.error.param, failed.traceback) == ("no weights", "model", "Traceback …")
    assert get(theirs) == Damaged(frozenset("ab"))
    ours.close()
    with pytest.raises(EOFError):
        get(theirs)
    theirs.close()
