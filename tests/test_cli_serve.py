"""``mmserve serve`` as a process: healthy once it is loaded, and an orderly end when it is told to."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.engine.pictures import png

LONG = 1500
"""Tokens of an answer that is still being written when the signal comes."""


class Served:
    """A server of its own process, over a tiny random model."""

    def __init__(self, checkpoint: Path, log: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "mmserve.launch_server", "--model-path", str(checkpoint), "--port", str(port)]
        small = ["--device", "cpu", "--kv-slots", "4096", "--tier-bytes", "0", "--log-format", "json"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, *small, *options], stdout=out, stderr=out, env=environment, cwd=log.parent
            )
        self.log = log
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def health(self) -> tuple[int, str]:
        """The status, and what it says; 0 while nobody listens."""
        with contextlib.suppress(httpx.TransportError):
            answer = self.http.get("/health")
            return answer.status_code, answer.json()["status"]
        return 0, ""

    def until(self, status: int, word: str) -> set[tuple[int, str]]:
        """Waits for this health; returns all that were seen."""
        seen: set[tuple[int, str]] = set()
        for _ in range(6000):
            seen.add(self.health())
            if (status, word) in seen:
                return seen
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"never {status} {word}: {seen}")

    @contextlib.contextmanager
    def answering(self) -> Iterator[Iterator[str]]:
        """The data lines of a long stream, whose first has come."""
        data = {"question": "What?", "max_tokens": str(LONG), "ignore_eos": "true", "stream": "true"}
        files = [("image", ("a.png", png("red"), "image/png"))]
        with self.http.stream("POST", "/v1/vqa", data=data, files=files) as response:
            lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
            next(lines)
            yield lines

    def lines(self) -> list[dict[str, object]]:
        """The log; each line must be JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def started(checkpoint_path: Path, tmp_path: Path) -> Iterator[Served]:
    served = Served(checkpoint_path, tmp_path / "log", "--drain-seconds", "600")
    try:
        yield served
    finally:
        served.http.close()
        served.process.kill()
        served.process.wait()


def test_it_listens_while_it_loads_and_drains_on_sigterm(started: Served) -> None:
    assert (503, "loading") in started.until(200, "ok")
    with started.answering() as lines:
        started.process.send_signal(signal.SIGTERM)
        started.until(503, "draining")
        refused = started.http.post("/v1/chat/completions", json={"messages": []})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "engine_unavailable"
        *_, last, done = lines
    assert done == "[DONE]"
    assert json.loads(last)["usage"]["completion_tokens"] == LONG
    assert started.process.wait(30) == 0
    [line] = [line for line in started.lines() if line.get("path") == "/v1/vqa"]
    assert (line["status"], line["completion_tokens"], line["outcome"]) == (200, LONG, "length")


def test_a_second_signal_ends_what_runs_with_a_typed_error(started: Served) -> None:
    started.until(200, "ok")
    with started.answering() as lines:
        started.process.send_signal(signal.SIGTERM)
        started.until(503, "draining")
        started.process.send_signal(signal.SIGTERM)
        *_, last = lines
    assert json.loads(last)["error"]["code"] == "engine_unavailable"
    assert started.process.wait(30) == 0
    assert any("did not end in time" in str(line.get("message")) for line in started.lines())


def test_a_signal_while_it_loads_ends_it(started: Served) -> None:
    started.until(503, "loading")
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(30) == 0
