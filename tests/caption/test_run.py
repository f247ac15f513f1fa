"""Captioning a folder: each picture once, each line at once, and what goes wrong said."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmserve import Answer, AsyncClient
from mmserve.caption import (
    Caption,
    ClientCaptioner,
    Ledger,
    Progress,
    caption_folder,
    open_jsonl,
)
from mmserve.errors import (
    ConfigError,
    CorruptPicture,
    EngineUnavailable,
    MMServeError,
    ModelNotFound,
    PromptTooLong,
    QueueFull,
)
from tests.caption.harness import PICTURES, USAGE, Artist, lines_of, paint, run, run_jsonl, sha
from tests.client.harness import VQA, fields


class TestRun:
    def test_each_picture_has_its_line(self, tmp_path: Path) -> None:
        folder, artist = paint(tmp_path, {"sub/e.png": b"E", **PICTURES}), Artist()
        report = run_jsonl(folder, artist, tmp_path / "out" / "c.jsonl", prompt="Say.", recursive=True, concurrency=1)
        assert lines_of(tmp_path / "out" / "c.jsonl") == [
            {
                "file": name,
                "caption": f"a caption of {data.decode()}",
                "model": "pocket-vl",
                "usage": {"prompt_tokens": 90, "completion_tokens": 3, "cached_tokens": 80, "image_tokens": 64},
                "sha256": sha(data),
            }
            for name, data in sorted({"sub/e.png": b"E", **PICTURES}.items())
        ]
        assert artist.prompts == {"Say."}
        assert report.failures == ()
        assert (report.progress.total, report.progress.captioned, report.progress.left) == (5, 5, 0)

    def test_a_second_run_asks_nothing_and_changes_nothing(self, tmp_path: Path) -> None:
        folder, path = paint(tmp_path, PICTURES), tmp_path / "c.jsonl"
        run_jsonl(folder, Artist(), path)
        before, artist = path.read_bytes(), Artist()
        report = run_jsonl(folder, artist, path)
        assert (artist.asked, path.read_bytes()) == ([], before)
        assert (report.progress.skipped, report.progress.captioned) == (4, 0)

    def test_new_pictures_are_added(self, tmp_path: Path) -> None:
        folder, path = paint(tmp_path, PICTURES), tmp_path / "c.jsonl"
        run_jsonl(folder, Artist(), path)
        (folder / "aa.png").write_bytes(b"new")
        artist = Artist()
        run_jsonl(folder, artist, path)
        assert artist.asked == [b"new"]
        assert lines_of(path)[-1]["file"] == "aa.png"

    def test_a_changed_picture_is_captioned_anew(self, tmp_path: Path) -> None:
        folder, path = paint(tmp_path, PICTURES), tmp_path / "c.jsonl"
        run_jsonl(folder, Artist(), path)
        (folder / "b.jpg").write_bytes(b"X")
        artist = Artist()
        report = run_jsonl(folder, artist, path)
        assert artist.asked == [b"X"]
        assert report.progress.skipped == 3
        assert {line["file"]: line["caption"] for line in lines_of(path)}["b.jpg"] == "a caption of X"
        assert run_jsonl(folder, artist, path).progress.skipped == 4  # the last line of a file counts

    def test_concurrency_is_used_and_kept(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {f"{i:02}.png": str(i).encode() for i in range(30)})
        artist = Artist(delay=0.01)
        run_jsonl(folder, artist, tmp_path / "c.jsonl", concurrency=5)
        assert artist.most == 5
        assert len(artist.asked) == 30

    @pytest.mark.parametrize("concurrency", [0, -3])
    def test_concurrency_must_be_positive(self, tmp_path: Path, concurrency: int) -> None:
        with pytest.raises(ConfigError, match="concurrency must be at least 1"):
            run_jsonl(paint(tmp_path, PICTURES), Artist(), tmp_path / "c.jsonl", concurrency=concurrency)

    def test_lines_are_there_as_soon_as_their_answer(self, tmp_path: Path) -> None:
        folder, path = paint(tmp_path, PICTURES), tmp_path / "c.jsonl"
        seen: list[int] = []

        class Looking(Artist):
            async def ask(self, data: bytes, prompt: str, /) -> Answer:
                seen.append(path.read_bytes().count(b"\n"))
                return await super().ask(data, prompt)

        run_jsonl(folder, Looking(), path, concurrency=1)
        assert seen == [0, 1, 2, 3]

    def test_half_a_surrogate_pair_does_not_stop_a_run(self, tmp_path: Path) -> None:
        class Odd:
            async def ask(self, data: bytes, prompt: str, /) -> Answer:  # noqa: ARG002
                return Answer("odd \ud83d end", "stop", USAGE, "m")

        run_jsonl(paint(tmp_path, {"a.png": b"A"}), Odd(), tmp_path / "c.jsonl")
        assert lines_of(tmp_path / "c.jsonl")[0]["caption"] == "odd ? end"


COPIES = {"a.png": b"same", "b.png": b"other", "c.png": b"same", "sub/d.jpg": b"same", "e.png": b"other"}


class TestDuplicates:
    @pytest.mark.parametrize("concurrency", [1, 2, 8])
    def test_the_same_bytes_are_captioned_once_and_written_for_each(self, tmp_path: Path, concurrency: int) -> None:
        folder, artist = paint(tmp_path, COPIES), Artist(delay=0.005)
        report = run_jsonl(folder, artist, tmp_path / "c.jsonl", recursive=True, concurrency=concurrency)
        assert Counter(artist.asked) == {b"same": 1, b"other": 1}
        lines = lines_of(tmp_path / "c.jsonl")
        assert {line["file"]: (line["caption"], line["sha256"]) for line in lines} == {
            name: (f"a caption of {data.decode()}", sha(data)) for name, data in COPIES.items()
        }
        assert sum(line["usage"] is not None for line in lines) == 2  # what was spent, once
        assert (report.progress.captioned, report.progress.copied) == (5, 3)

    def test_copies_wait_without_holding_a_place(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {**{f"a{i}.png": b"same" for i in range(8)}, "z.png": b"other"})
        artist = Artist(delay=0.2)
        run_jsonl(folder, artist, tmp_path / "c.jsonl", concurrency=2)
        assert artist.most == 2

    def test_an_earlier_runs_caption_serves_a_new_copy(self, tmp_path: Path) -> None:
        folder, path = paint(tmp_path, {"b.png": b"same"}), tmp_path / "c.jsonl"
        run_jsonl(folder, Artist(), path)
        (folder / "a.png").write_bytes(b"same")
        artist = Artist()
        run_jsonl(folder, artist, path)
        assert artist.asked == []
        assert lines_of(path)[-1] | {"usage": 0} == lines_of(path)[0] | {"file": "a.png", "usage": 0}

    @pytest.mark.parametrize("concurrency", [1, 2])
    def test_copies_of_a_corrupt_picture_fail_together(self, tmp_path: Path, concurrency: int) -> None:
        folder = paint(tmp_path, {"a.png": b"bad", "b.png": b"bad", "c.png": b"bad", "d.png": b"fine"})
        artist = Artist({b"bad": CorruptPicture("damaged")}, delay=0.01)
        report = run_jsonl(folder, artist, tmp_path / "c.jsonl", concurrency=concurrency)
        assert Counter(artist.asked) == {b"bad": 1, b"fine": 1}
        assert [failure.file for failure in report.failures] == ["a.png", "b.png", "c.png"]


class TestFailures:
    @pytest.mark.parametrize(
        "error", [CorruptPicture("damaged"), PromptTooLong("too many tiles"), MMServeError("the server failed")]
    )
    def test_what_is_wrong_with_a_picture_is_reported_at_the_end(self, tmp_path: Path, error: MMServeError) -> None:
        folder, path = paint(tmp_path, PICTURES), tmp_path / "c.jsonl"
        report = run_jsonl(folder, Artist({b"B": error, b"D": error}), path, concurrency=1)
        assert [(failure.file, failure.error) for failure in report.failures] == [("b.jpg", error), ("d.png", error)]
        assert (report.progress.captioned, report.progress.failed, report.progress.left) == (2, 2, 0)
        assert [line["file"] for line in lines_of(path)] == ["a.png", "c.webp"]

    def test_it_is_tried_again_by_the_next_run(self, tmp_path: Path) -> None:
        folder, path = paint(tmp_path, PICTURES), tmp_path / "c.jsonl"
        run_jsonl(folder, Artist({b"B": CorruptPicture("damaged")}), path)
        artist = Artist()
        assert run_jsonl(folder, artist, path).failures == ()
        assert artist.asked == [b"B"]

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {"a.png": b"A"})
        (folder / "b.png").symlink_to(folder / "nowhere")
        report = run_jsonl(folder, Artist(), tmp_path / "c.jsonl")
        assert [failure.file for failure in report.failures] == ["b.png"]
        assert isinstance(report.failures[0].error, FileNotFoundError)

    @pytest.mark.parametrize(
        "error", [EngineUnavailable("gone"), ModelNotFound("which?"), QueueFull("full"), OSError("?")]
    )
    def test_what_would_meet_every_picture_ends_the_run(self, tmp_path: Path, error: Exception) -> None:
        folder = paint(tmp_path, {f"{i:03}.png": str(i).encode() for i in range(200)})
        artist = Artist({str(i).encode(): error for i in range(20, 200)})
        with pytest.raises(type(error)) as caught:
            run_jsonl(folder, artist, tmp_path / "c.jsonl", concurrency=4)
        assert caught.value is error
        assert len(artist.asked) <= 24
        written = len(lines_of(tmp_path / "c.jsonl"))
        assert 16 < written <= 20  # a good answer may be under way when the error comes
        assert run_jsonl(folder, Artist(), tmp_path / "c.jsonl").progress.captioned == 200 - written

    def test_the_cause_of_the_end_is_kept(self, tmp_path: Path) -> None:
        error = EngineUnavailable("gone")
        error.__cause__ = httpx.ConnectError("refused")
        with pytest.raises(EngineUnavailable) as caught:
            run_jsonl(paint(tmp_path, PICTURES), Artist({b"A": error}), tmp_path / "c.jsonl")
        assert isinstance(caught.value.__cause__, httpx.ConnectError)

    def test_a_full_disk_ends_the_run(self, tmp_path: Path) -> None:
        class Full(Ledger):
            def recorded(self, files: Any) -> Mapping[str, Caption]:  # noqa: ARG002
                return {}

            def write(self, caption: Caption) -> None:  # noqa: ARG002
                raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            run(paint(tmp_path, PICTURES), Artist(), Full())


class TestProgress:
    def test_is_told_after_each_picture(self, tmp_path: Path) -> None:
        pictures = {**{f"{i}.png": str(i).encode() for i in range(4)}, "4.png": b"0"}
        folder, path = paint(tmp_path, pictures), tmp_path / "c.jsonl"
        run_jsonl(folder, Artist({b"3": CorruptPicture("no")}), path)
        (folder / "5.png").write_bytes(b"5")
        now = 0.0

        class Slow(Artist):
            async def ask(self, data: bytes, prompt: str, /) -> Answer:
                nonlocal now
                now += 2.0
                return await super().ask(data, prompt)

        told: list[Progress] = []
        artist = Slow({b"3": CorruptPicture("no")})
        report = run_jsonl(folder, artist, path, concurrency=1, on_progress=told.append, clock=lambda: 100.0 + now)
        assert [(p.total, p.skipped, p.captioned, p.failed, p.seconds) for p in told] == [
            (6, 1, 0, 0, 0.0),
            (6, 2, 0, 0, 0.0),
            (6, 3, 0, 0, 0.0),
            (6, 4, 0, 0, 0.0),
            (6, 4, 0, 0, 0.0),
            (6, 4, 0, 1, 2.0),
            (6, 4, 1, 1, 4.0),
        ]
        assert report.progress == told[-1]
        assert [p.eta for p in told[-3:]] == [None, 2.0, 0.0]
        assert [p.rate for p in told[-3:]] == [0.0, 0.5, 0.5]
        assert [p.left for p in told[-3:]] == [2, 1, 0]


def test_over_http(tmp_path: Path) -> None:
    """The client is a captioner, and so is one with options."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=VQA)

    async def go(folder: Path) -> None:
        async with AsyncClient(transport=httpx.MockTransport(handler)) as client:
            for name, captioner in (
                ("plain", client),
                ("bound", ClientCaptioner(client, model="m", system="s", options={"max_tokens": 5})),
            ):
                with open_jsonl(tmp_path / name) as ledger:
                    await caption_folder(folder, captioner, ledger, prompt="Say.")

    asyncio.run(go(paint(tmp_path, {"a.png": b"A"})))
    assert [fields(request) for request in seen] == [
        {"question": ["Say."]},
        {"question": ["Say."], "model": ["m"], "system": ["s"], "max_tokens": ["5"]},
    ]
    assert lines_of(tmp_path / "plain")[0]["caption"] == "A cat."
