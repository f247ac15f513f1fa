"""``mmserve serve`` with the embedded model, asked by the OpenAI client, killed and ended in the midst of a batch."""

from __future__ import annotations

import base64
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
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

import mmserve
from tests.web.batches.office import CHAT, each_once, jsonl, line

COUNT = 60
CIRCLE = Path(mmserve.__file__).parent / "assets" / "examples" / "red-circle.png"


class Server:
    """The same command line, whenever it is started."""

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mmserve", "serve", "--port", str(self.port), "--device", "cpu"]
        command += ["--data-folder", str(self.folder), "--kv-slots", "8192", "--tier-bytes", "0"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=self.log.parent)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", verify=False) as http:
            for _ in range(1500):
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/health").status_code == 200:
                        return
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.1)
        raise AssertionError("it does not serve")

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    above = tmp_path_factory.mktemp("server")
    server = Server(above / "data", above / "log")
    server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            server.process.kill()
            server.process.wait()


@pytest.fixture
def api(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", timeout=60) as client:
        yield client


def requests() -> bytes:
    """One in ten with a picture, and one in twenty that is refused."""
    url = "data:image/png;base64," + base64.b64encode(CIRCLE.read_bytes()).decode()
    found: list[dict[str, Any]] = []
    for i in range(COUNT):
        request = line(f"r{i}", f"Tell me about {i}.", max_tokens=24, temperature=0, ignore_eos=True)
        if i % 10 == 0:
            picture = {"type": "image_url", "image_url": {"url": url}}
            request["body"]["messages"][0]["content"] = [picture, {"type": "text", "text": "Which colour?"}]
        if i % 20 == 7:
            request["body"]["temperature"] = -1
        found.append(request)
    return jsonl(found)


def until_done(api: openai.OpenAI, id_: str, count: int) -> Batch:
    """The batch once so many of its requests are answered, or it has ended."""
    for _ in range(3000):
        batch = api.batches.retrieve(id_)
        assert batch.request_counts is not None
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        if batch.request_counts.completed + batch.request_counts.failed >= count:
            return batch
        time.sleep(0.03)
    raise AssertionError(batch)


def lines(api: openai.OpenAI, id_: str | None) -> list[dict[str, Any]]:
    return [] if id_ is None else [json.loads(each) for each in api.files.content(id_).text.splitlines()]


def test_the_client_s_calls(api: openai.OpenAI) -> None:
    kept = api.files.create(
        file=("notes.txt", b"hello"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert kept.expires_at == kept.created_at + 3600
    ids = [api.files.create(file=("in.jsonl", b"x\n"), purpose="batch").id for _ in range(3)]
    assert [file.id for file in api.files.list(limit=2, order="asc", purpose="batch")] == ids
    assert api.files.retrieve(kept.id) == kept
    assert api.files.content(kept.id).read() == b"hello"
    for file in api.files.list(limit=1, purpose="batch"):
        assert api.files.delete(file.id).deleted
    assert [file.id for file in api.files.list()] == [kept.id]
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(ids[0])
    long = jsonl(line(f"r{i}", max_tokens=200, ignore_eos=True) for i in range(200))
    file = api.files.create(file=long, purpose="batch")
    batch = api.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert until_done(api, batch.id, 1).status == "in_progress"
    assert api.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    ended = until_done(api, batch.id, 1000)
    assert ended.status == "cancelled"
    each_once(lines(api, ended.output_file_id) + lines(api, ended.error_file_id), 200)
    assert ended.output_file_id is not None
    assert api.files.retrieve(ended.output_file_id).purpose == "batch_output"
    assert [found.id for found in api.batches.list(limit=1)] == [batch.id]
    wrong = api.files.create(file=("in.jsonl", b"x\n"), purpose="batch")
    failed = until_done(api, api.batches.create(input_file_id=wrong.id, endpoint=CHAT, completion_window="24h").id, 1)
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [(error.code, error.line) for error in failed.errors.data] == [("invalid_json_line", 1)]


def test_what_is_killed_goes_on(server: Server, api: openai.OpenAI) -> None:
    file = api.files.create(file=("in.jsonl", requests()), purpose="batch")
    batch = api.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"a": "b"})
    seen: list[int] = []
    for number, count in ((signal.SIGKILL, 5), (signal.SIGTERM, 25)):
        found = until_done(api, batch.id, count)
        assert found.status == "in_progress"
        assert found.request_counts is not None
        seen.append(found.request_counts.completed)
        assert server.end(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        server.start()
        again = api.batches.retrieve(batch.id).request_counts
        assert again is not None
        assert again.completed >= seen[-1]
    done = until_done(api, batch.id, COUNT + 1)
    assert done.status == "completed"
    assert done.metadata == {"a": "b"}
    output, errors = lines(api, done.output_file_id), lines(api, done.error_file_id)
    each_once(output + errors, COUNT)
    assert {each["custom_id"] for each in errors} == {"r7", "r27", "r47"}
    assert {each["response"]["status_code"] for each in output} == {200}
    assert done.usage is not None
    assert done.usage.output_tokens == 24 * len(output)
    body = json.loads(requests().splitlines()[1])["body"]
    direct = httpx.post(f"http://127.0.0.1:{server.port}{CHAT}", json=body, timeout=60).json()
    [same] = [each for each in output if each["custom_id"] == "r1"]
    assert same["response"]["body"]["choices"][0]["message"]["content"] == direct["choices"][0]["message"]["content"]
    second = subprocess.run(
        [sys.executable, "-m", "mmserve", "serve", "--port", "0", "--data-folder", str(server.folder)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert second.returncode == 1
    assert "another server uses the data folder" in second.stderr
