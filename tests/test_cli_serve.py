"""``mmserve serve`` as a process: healthy once it is loaded, and an orderly end when it is told to."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import mmserve
from mmserve.cli import main
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
                [*command, *small, *options],
                stdout=out,
                stderr=out,
                env=environment,
                cwd=log.parent,
                start_new_session=True,
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
    def answering(self, tokens: int = LONG) -> Iterator[Iterator[str]]:
        """The data lines of a long stream, whose first has come."""
        data = {"question": "What?", "max_tokens": str(tokens), "ignore_eos": "true", "stream": "true"}
        files = [("image", ("a.png", png("red"), "image/png"))]
        with self.http.stream("POST", "/v1/vqa", data=data, files=files) as response:
            lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
            next(lines)
            yield lines

    def engine(self) -> int:
        """The process id of its engine."""
        [pid] = [pid for pid in _members(self.process.pid) if "mmserve.engine.process" in _command(pid)]
        return pid

    def lines(self) -> list[dict[str, object]]:
        """The log; each line must be JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def _members(group: int) -> set[int]:
    """The processes of a group that still run."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.add(int(stat.parent.name))
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _has_torch(pid: int) -> bool:
    maps = Path(f"/proc/{pid}/maps").read_text()
    return any(name in maps for name in ("libtorch", "torchvision", "triton"))


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
        os.killpg(started.process.pid, signal.SIGTERM)  # the engine's process gets it too
        started.until(503, "draining")
        refused = started.http.post("/v1/chat/completions", json={"messages": []})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "engine_unavailable"
        *_, last, done = lines
    assert done == "[DONE]"
    assert json.loads(last)["usage"]["completion_tokens"] == LONG
    assert started.process.wait(30) == 0
    assert not _members(started.process.pid)
    [line] = [line for line in started.lines() if line.get("path") == "/v1/vqa"]
    assert (line["status"], line["completion_tokens"], line["outcome"]) == (200, LONG, "length")


def test_the_server_has_no_torch_and_outlives_its_engine(started: Served) -> None:
    started.until(200, "ok")
    shown = {"image": ("a.png", png("red"), "image/png")}
    answer = started.http.post("/v1/vqa", data={"question": "What?", "max_tokens": "3"}, files=shown)
    assert answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    counted = started.http.get("/get_server_info").json()["stats"]["prompt_tokens"]
    assert counted > 0
    with started.answering() as lines:
        engine = started.engine()
        assert _has_torch(engine)
        assert not _has_torch(started.process.pid)
        os.kill(engine, signal.SIGKILL)
        *_, last = lines
    assert json.loads(last)["error"]["code"] == "engine_unavailable"
    answer = started.http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert answer.headers["retry-after"]
    refused = started.http.post("/generate", json={"text": "1 2 3"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert refused.headers["retry-after"]
    assert started.http.get("/health_generate").status_code == 503
    assert "engine_restarts_total" in started.http.get("/metrics").text
    started.until(200, "ok")
    assert started.http.get("/health_generate").status_code == 200
    stats = started.http.get("/get_server_info").json()["stats"]
    assert stats["engine_restarts"] == 1
    assert stats["prompt_tokens"] > counted, "what the first engine counted is still there"
    assert any("SIGKILL" in str(line.get("message")) for line in started.lines())
    assert started.engine() != engine
    started.process.kill()
    started.process.wait()
    for _ in range(1000):
        if not _members(started.process.pid):
            break
        time.sleep(0.01)
    assert not _members(started.process.pid), "the engine went with the server"


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


def test_a_model_that_cannot_be_loaded_ends_it_with_its_sentence(checkpoint_path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint_path, damaged)
    for weights in damaged.glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:1000])
    served = Served(damaged, tmp_path / "log")
    with served.http:
        assert served.process.wait(120) == 1
    assert not _members(served.process.pid)
    sentence = served.log.read_text().splitlines()[-1]
    assert sentence.startswith("mmserve: ")
    assert "safetensors" in sentence


_COMPOSED = """
import asyncio, sys
import mmserve.cli, mmserve.cli_serve, mmserve.engine.process.client, web.app, web.operations.front
import web.operations.metrics, web.operations.observed, web.operations.tracing, mmserve.grammar.judging
from mmserve.config import Limits
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from mmserve.types import ImagePart, Message, TextPart

picture = ImagePart(open(sys.argv[2], "rb").read())
prompts = PromptBuilder(load_registry().resolve(sys.argv[1]), Limits())
prompts.build([Message("user", (picture, TextPart("What?")))])
print(sorted({"torch", "torchvision", "transformers", "triton"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("model", ["tiny", "pocket-vl"])
def test_what_the_server_puts_together_loads_no_torch(model: str, checkpoint_path: Path) -> None:
    named = str(checkpoint_path) if model == "tiny" else model
    example = Path(mmserve.__file__).parent / "assets" / "examples" / "red-circle.png"
    command = [sys.executable, "-c", _COMPOSED, named, str(example)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("seconds", ["-1", "soon", "inf", "nan"])
def test_a_watchdog_needs_a_time(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--watchdog-seconds", seconds])
    assert "--watchdog-seconds" in capsys.readouterr().err
