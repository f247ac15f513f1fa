"""A run may end anywhere, with its last line cut anywhere; a further run completes it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from mmserve import Answer
from mmserve.caption import (
    caption_folder,
    open_csv,
    open_jsonl,
)
from tests.caption.harness import Artist, lines_of, paint, run, run_jsonl


class Killed(BaseException):
    """The end of the process, as far as the code can tell; a real KeyboardInterrupt would pass through event loops."""


class TestResume:
    """A run may end anywhere, with its last line cut anywhere."""

    @pytest.mark.parametrize("form", ["jsonl", "csv"])
    def test_after_a_crash_at_every_byte(self, tmp_path: Path, form: str) -> None:
        pictures = {"ä, b.png": b"A", 'c"d.png': b"B", "e.png": b"A"}
        folder, path = paint(tmp_path, pictures), tmp_path / f"c.{form}"
        open_ = {"jsonl": open_jsonl, "csv": open_csv}[form]
        with open_(path) as ledger:
            run(folder, Artist(), ledger, concurrency=1)
        whole = path.read_bytes()
        assert whole.count(b"\n") == 3 + (form == "csv")
        for cut in range(len(whole) + 1):
            path.write_bytes(whole[:cut])
            with open_(path) as ledger:
                kept = ledger.recorded(list(pictures))
                repaired = path.read_bytes()
                assert whole.startswith(repaired)
                assert repaired.endswith(b"\n") or not repaired
                artist = Artist()
                report = run(folder, artist, ledger, concurrency=1)
            assert path.read_bytes().split(b"\n")[0] == whole.split(b"\n")[0]
            if len(kept) >= 1:  # usage of a copy is None, so the rest is the same bytes again
                assert path.read_bytes() == whole
            assert report.progress.skipped == len(kept)
            assert len(artist.asked) == len({pictures[name] for name in pictures} - {pictures[name] for name in kept})

    @pytest.mark.parametrize("calls", range(6))
    def test_after_a_crash_at_every_picture(self, tmp_path: Path, calls: int) -> None:
        class Dying(Artist):
            async def ask(self, data: bytes, prompt: str, /) -> Answer:
                if len(self.asked) == calls:
                    raise Killed
                return await super().ask(data, prompt)

        pictures = {f"{i}.png": str(i).encode() for i in range(5)}
        folder, path = paint(tmp_path, pictures), tmp_path / "c.jsonl"
        first, second = Dying(), Artist()
        try:
            run_jsonl(folder, first, path, concurrency=2)
        except BaseExceptionGroup:
            assert calls < 5
        written = len(lines_of(path))
        assert written <= calls
        run_jsonl(folder, second, path)
        assert Counter(line["file"] for line in lines_of(path)) == Counter(list(pictures))
        assert len(second.asked) == 5 - written

    def test_cancelled(self, tmp_path: Path) -> None:
        folder, path = paint(tmp_path, {f"{i}.png": str(i).encode() for i in range(20)}), tmp_path / "c.jsonl"
        artist = Artist(delay=0.01)

        async def stop_early() -> None:
            with open_jsonl(path) as ledger:
                task = asyncio.create_task(caption_folder(folder, artist, ledger, concurrency=3))
                while path.read_bytes().count(b"\n") < 5:
                    await asyncio.sleep(0.001)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert artist.running == 0

        asyncio.run(stop_early())
        assert 5 <= len(lines_of(path)) < 20
        run_jsonl(folder, Artist(), path)
        assert Counter(line["file"] for line in lines_of(path)) == Counter(f"{i}.png" for i in range(20))

    def test_killed_processes_leave_a_ledger_that_a_run_completes(self, tmp_path: Path) -> None:
        pictures = {f"{i:03}.png": str(i % 90).encode() for i in range(100)}
        folder, path = paint(tmp_path, pictures), tmp_path / "c.jsonl"
        script = textwrap.dedent(
            """
            import asyncio, sys
            from pathlib import Path
            from mmserve.caption import caption_folder, open_jsonl
            from tests.caption.harness import Artist
            with open_jsonl(Path(sys.argv[2])) as ledger:
                asyncio.run(caption_folder(Path(sys.argv[1]), Artist(delay=0.02), ledger, concurrency=2))
            """
        )
        for target in (10, 40):
            process = subprocess.Popen([sys.executable, "-c", script, str(folder), str(path)])
            deadline = time.monotonic() + 60
            while not (path.exists() and path.read_bytes().count(b"\n") >= target):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert 40 <= len(lines_of(path)) < 100
        run_jsonl(folder, Artist(), path)
        assert Counter(line["file"] for line in lines_of(path)) == Counter(list(pictures))
