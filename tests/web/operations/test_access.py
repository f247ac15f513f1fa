"""The line for each request: what it says, and what it never says."""

from __future__ import annotations

import json
import logging

import httpx
import pytest

from mmserve.cli_log import JsonFormatter
from mmserve.errors import CorruptPicture
from tests.web.fakes import FakeEngine, png

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def listening(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mmserve.access")


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    records = [record for record in caplog.records if record.name == "mmserve.access"]
    return [json.loads(JsonFormatter().format(record)) for record in records]


async def ask(http: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
    data = {"question": "A secret question?"} | fields
    files = [("image", ("secret.png", png(), "image/png"))]
    return await http.post("/v1/vqa?token=hidden", files=files, data=data, headers=headers)


async def test_one_line_says_what_became_of_a_request(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = await ask(http, {"X-Request-Id": "from-the-proxy/1"})
    assert response.headers["x-request-id"] == "from-the-proxy/1"
    (line,) = lines(caplog)
    assert line["request_id"] == "from-the-proxy/1"
    assert response.json()["id"] == f"vqa-{line['id']}"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/vqa", 200)
    assert (line["outcome"], line["pictures"]) == ("stop", 1)
    usage = response.json()["usage"]
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["completion_tokens"] == usage["completion_tokens"]
    assert line["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert isinstance(line["duration_s"], float)
    assert isinstance(line["first_token_s"], float)


async def test_a_stream_has_one_line_too(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    assert (await ask(http, stream="true")).status_code == 200
    (line,) = lines(caplog)
    assert (line["outcome"], line["completion_tokens"]) == ("stop", 3)


async def test_nothing_of_the_content_is_logged(
    http: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    await ask(http)
    engine.script = lambda _: [CorruptPicture("bad")]
    await ask(http)
    written = caplog.text + json.dumps(lines(caplog))
    assert "secret" not in written
    assert "hidden" not in written
    assert "cat" not in written
    assert lines(caplog)[1]["error"] == "corrupt_image"


async def test_a_fault_is_a_line_with_500(
    http: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.script = lambda _: [RuntimeError("a fault")]
    response = await ask(http, {"X-Request-Id": "mine"})
    assert "mine" in response.json()["error"]["message"]
    (line,) = lines(caplog)
    assert (line["status"], line["outcome"]) == (500, "error")


async def test_what_machines_ask_is_quiet(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/health", "/live", "/metrics"):
        await http.get(path)
    assert not lines(caplog)
    caplog.set_level(logging.DEBUG, logger="mmserve.access")
    await http.get("/health")
    assert lines(caplog)[0]["level"] == "debug"


async def test_a_path_cannot_forge_a_line(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    await http.get("/a%0AINFO%20forged" + "x" * 1000)
    (record,) = [record for record in caplog.records if record.name == "mmserve.access"]
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 600


@pytest.mark.parametrize("sent", ["", "a b", "a" * 129, 'x"y', "<script>", "a,b"])
async def test_an_id_that_is_none_is_replaced(http: httpx.AsyncClient, sent: str) -> None:
    returned = (await http.get("/health", headers={"X-Request-Id": sent})).headers["x-request-id"]
    assert returned != sent
    assert len(returned) == 32


async def test_two_requests_may_share_an_id(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for _ in range(2):
        assert (await ask(http, {"X-Request-Id": "same"})).status_code == 200
    assert len({request.id for request in engine.requests}) == 2
