"""A file's bytes travel once while anybody has it, and are dropped when nobody has."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from mmserve.engine.process.media import Kept, Sent
from mmserve.sounds.header import AudioHeader
from mmserve.sounds.sound import Sound
from mmserve.types import ContentHash, Grid, Request
from tests.engine.process.fakes import ask, picture
from vision.video import Sampling, Video, VideoBlock, VideoHeader

NAMES = "abc"


def sizes(request: Request) -> list[int]:
    return [len(item.data) for item in request.prompt.media]


def test_the_second_request_travels_without_the_bytes() -> None:
    sent, kept = Sent(), Kept()
    shared = picture("a", 50_000)
    first, second = ask("1", 3, "", shared), ask("2", 3, "", shared, shared)
    assert sizes(sent.lighten(first)) == [50_000]
    light = sent.lighten(second)
    assert sizes(light) == [0, 0]
    assert len(pickle.dumps(light)) < 2000
    kept.complete(first)
    assert sizes(kept.complete(light)) == [50_000, 50_000]
    assert sent.ended(first) == ()
    assert sent.ended(second) == (shared.content,)
    kept.forget((shared.content,))
    assert len(kept) == 0


def test_a_picture_that_comes_twice_in_one_request_travels_once() -> None:
    twice = ask("1", 3, "", picture("a", 9), picture("a", 9))
    light = Sent().lighten(twice)
    assert sizes(light) == [9, 0]
    assert sizes(Kept().complete(light)) == [9, 9]


def blocks(data: bytes, *names: str) -> list[VideoBlock]:
    header = VideoHeader("mov", 32, 32, 2.0, (0.0, 0.5))
    video = Video(data, b"digest of " + data[:9], header, Sampling((0.0, 0.5), 2.0), 32, 32)
    return [
        VideoBlock(video, k, b"frames", ContentHash(name.encode()), Grid(1, 2, 2), 1, 1.0)
        for k, name in enumerate(names)
    ]


def test_the_blocks_of_a_video_bring_its_file_once_and_all_have_it() -> None:
    sent, kept = Sent(), Kept()
    request = ask("1", 3, "", *blocks(b"v" * 50_000, "a", "b", "c"))
    light = sent.lighten(request)
    assert sizes(light) == [50_000, 0, 0]
    assert len(pickle.dumps(light)) < 53_000
    assert sizes(kept.complete(pickle.loads(pickle.dumps(light)))) == [50_000] * 3
    assert len(sent.ended(request)) == 1


def test_blocks_of_one_content_in_two_files_are_each_decoded_from_their_own() -> None:
    """A longer cut begins with the same blocks; where in the file they stand need not be the same."""
    sent, kept = Sent(), Kept()
    short, long = ask("1", 3, "", *blocks(b"s" * 10, "a")), ask("2", 3, "", *blocks(b"l" * 20, "a", "b"))
    kept.complete(sent.lighten(short))
    assert [item.data for item in kept.complete(sent.lighten(long)).prompt.media] == [b"l" * 20] * 2
    kept.forget(sent.ended(short))
    again = kept.complete(sent.lighten(ask("3", 3, "", *blocks(b"l" * 20, "b"))))
    assert again.prompt.media[0].data == b"l" * 20
    assert len(kept) == 1


def test_a_sound_travels_once() -> None:
    sound = Sound(b"s" * 9, AudioHeader("wav", 16_000, 1, 16_000, 1.0), ContentHash(b"s"), 1, 1.0, 1, 1)
    light = Sent().lighten(ask("1", 3, "", sound, sound))
    assert sizes(light) == [9, 0]
    assert sizes(Kept().complete(light)) == [9, 9]


def test_token_ids_stay_read_only() -> None:
    request = pickle.loads(pickle.dumps(ask("1")))
    assert not Kept().complete(request).prompt.token_ids.flags.writeable


@given(st.lists(st.tuples(st.booleans(), st.lists(st.sampled_from(NAMES), max_size=3)), max_size=30))
def test_every_request_arrives_whole_and_nothing_is_kept_for_nobody(moves: list[tuple[bool, list[str]]]) -> None:
    sent, kept, open_ = Sent(), Kept(), []
    for number, (begin, names) in enumerate(moves):
        if begin:
            request = ask(str(number), 3, "", *(picture(name, 1 + NAMES.index(name)) for name in names))
            assert sizes(kept.complete(sent.lighten(request))) == sizes(request)
            open_.append(request)
        elif open_:
            kept.forget(sent.ended(open_.pop(0)))
        assert len(kept) == len({item.source for request in open_ for item in request.prompt.media})
