"""What the bench of captions on Ray kills and says; the run itself is one of ``make cluster``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.caption import Folder, Result
from bench.cluster_captions import Killing, report, workers_of
from tests.web.fakes import eventually

_SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_workers_are_found_by_their_name_below_the_command() -> None:
    worker = subprocess.Popen([*_SLEEP, "ray::MapWorker(MapBatches(Worker))"])
    other = subprocess.Popen([*_SLEEP, "ray::IDLE"])
    try:
        eventually(lambda: workers_of(os.getpid()) == [worker.pid])
        assert workers_of(other.pid) == []
    finally:
        for process in (worker, other):
            process.kill()
            process.wait()


def test_the_report_says_what_was_wrong() -> None:
    folder = Folder(Path(), ("a.png", "b.png"), ("c.png",), {})
    text = "\n".join(report(folder, Result(["not once each"], lines=1, seconds=2.0, rate=0.5), Killing(7, 2, 1), 2))
    assert "3 files of which 1 are corrupt, 2 workers" in text
    assert "worker 7, one of 2, was killed after 1 captions" in text
    assert "1 captions of 2 good pictures, problems: 1\n    not once each\n" in text
