"""What is sent again, after how long, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.client.flow import backoff
from mmserve.errors import EngineUnavailable, InvalidField, MMServeError, ModelNotFound, QueueFull
from tests.client.harness import VQA, Both, Chunks, fields, form_parts

JPEG = b"\xff\xd8\xff\xe0 jpeg"
UNHEARD = "Server disconnected without sending a response."

Outcome = Exception | httpx.Response


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Script:
    """A server that does these things in turn."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = iter(outcomes)
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        outcome = next(self._outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def ok() -> httpx.Response:
    return httpx.Response(200, json=VQA)


def refusal(status: int, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=names, json={"error": QueueFull("later").to_wire()})


def scripted(kind: str, *outcomes: Outcome, **settings: Any) -> tuple[Both, Script]:
    script = Script(*outcomes)
    return Both(kind, script, {"backoff": lambda attempt: float(2**attempt), **settings}), script


@pytest.mark.parametrize(
    "failure",
    [
        lambda: httpx.ConnectError("refused"),
        lambda: httpx.ConnectTimeout("slow"),
        lambda: httpx.RemoteProtocolError(UNHEARD),
        lambda: httpx.ReadError("reset"),
        lambda: httpx.WriteError("broken pipe"),
        lambda: refusal(429),
        lambda: refusal(503),
    ],
)
def test_sent_again_with_back_off_until_answered(kind: str, failure: Callable[[], Outcome]) -> None:
    both, script = scripted(kind, failure(), failure(), failure(), ok())
    assert both.call("ask", JPEG, "q", seed=3).text == "A cat."
    assert both.slept == [1.0, 2.0, 4.0]
    for request in script.seen:  # whole each time, although a body can be read only once
        assert fields(request) == {"question": ["q"], "seed": ["3"]}
        assert form_parts(request)[-1].value == JPEG


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_given_up_after_that_many_retries(kind: str, retries: int) -> None:
    both, script = scripted(kind, *[httpx.ConnectError("refused")] * 9, retries=retries)
    with pytest.raises(EngineUnavailable, match=r"cannot connect to http://127.0.0.1:8000 \(refused\)") as caught:
        both.call("ask", JPEG, "q")
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert len(script.seen) == retries + 1
    assert len(both.slept) == retries


def test_the_last_refusal_is_what_is_raised(kind: str) -> None:
    both, _ = scripted(kind, httpx.ConnectError("refused"), refusal(503), refusal(429), retries=2)
    with pytest.raises(QueueFull, match="later"):
        both.call("ask", JPEG, "q")


@pytest.mark.parametrize(
    "error", [httpx.ReadTimeout("timed out"), httpx.WriteTimeout("timed out"), httpx.PoolTimeout("timed out")]
)
def test_a_timeout_is_not_repeated(kind: str, error: Exception) -> None:
    both, script = scripted(kind, error, ok())
    with pytest.raises(EngineUnavailable, match="sent nothing for the time allowed"):
        both.call("ask", JPEG, "q")
    assert len(script.seen) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 422, 499, 500, 502, 504])
def test_other_refusals_are_not_repeated(kind: str, status: int) -> None:
    both, script = scripted(kind, httpx.Response(status), ok())
    with pytest.raises(MMServeError):
        both.call("ask", JPEG, "q")
    assert (len(script.seen), both.slept) == (1, [])


@pytest.mark.parametrize(
    "error", [httpx.ReadError("reset"), httpx.RemoteProtocolError("cut"), httpx.ReadTimeout("slow")]
)
@pytest.mark.parametrize("status", [200, 503])
def test_nothing_is_repeated_once_a_reply_has_begun(kind: str, error: Exception, status: int) -> None:
    body = Chunks([b'{"id": ', error])
    both, script = scripted(kind, httpx.Response(status, stream=body), ok())
    with pytest.raises(EngineUnavailable, match=r"broke before the answer was complete|sent nothing for"):
        both.call("ask", JPEG, "q")
    assert len(script.seen) == 1
    assert body.closed


def test_a_damaged_encoding_is_a_broken_reply(kind: str) -> None:
    both, _ = scripted(kind, httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=Chunks([b"not gzip"])))
    with pytest.raises(EngineUnavailable, match="broke before the answer was complete"):
        both.call("ask", JPEG, "q")


class TestRetryAfter:
    def test_longer_than_the_back_off(self, kind: str) -> None:
        both, _ = scripted(kind, refusal(429, Retry_After="7"), refusal(503, Retry_After="2.5"), ok())
        both.call("ask", JPEG, "q")
        assert both.slept == [7.0, 2.5]

    def test_shorter_than_the_back_off(self, kind: str) -> None:
        both, _ = scripted(kind, refusal(429, Retry_After="0"), refusal(429, Retry_After="1"), ok())
        both.call("ask", JPEG, "q")
        assert both.slept == [1.0, 2.0]

    def test_as_a_date_by_the_servers_clock(self, kind: str) -> None:
        later = refusal(503, Date="Wed, 21 Oct 2015 07:28:00 GMT", Retry_After="Wed, 21 Oct 2015 07:28:30 GMT")
        past = refusal(503, Date="Wed, 21 Oct 2015 07:28:00 GMT", Retry_After="Wed, 21 Oct 2015 07:00:00 GMT")
        both, _ = scripted(kind, later, past, ok())
        both.call("ask", JPEG, "q")
        assert both.slept == [30.0, 2.0]

    def test_as_a_date_without_a_servers_clock(self, kind: str) -> None:
        both, _ = scripted(kind, refusal(503, Retry_After="Wed, 21 Oct 2015 07:28:30 GMT"), ok())
        both.call("ask", JPEG, "q")
        assert both.slept == [1.0]  # long past

    @pytest.mark.parametrize("value", ["soon", "", "-5", "nan", "inf", "1e3", "Wed, 99 Oct 2015 07:28:30 GMT"])
    def test_nonsense_is_passed_over(self, kind: str, value: str) -> None:
        both, _ = scripted(kind, refusal(429, Retry_After=value), ok())
        both.call("ask", JPEG, "q")
        assert both.slept == [1.0]

    def test_too_long_a_wait_is_refused(self, kind: str) -> None:
        both, script = scripted(kind, refusal(429, Retry_After="61"), ok())
        with pytest.raises(QueueFull):
            both.call("ask", JPEG, "q")
        assert (len(script.seen), both.slept) == (1, [])


@given(st.integers(0, 10_000))
def test_back_off_grows_to_a_bound_and_varies(attempt: int) -> None:
    whole = min(8.0, 0.5 * 2.0 ** min(attempt, 4))
    waits = {backoff(attempt) for _ in range(20)}
    assert all(whole / 2 < wait <= whole for wait in waits)
    assert len(waits) > 1


class TestWaitReady:
    def test_returns_once_the_server_is_well(self, kind: str) -> None:
        both, script = scripted(
            kind,
            httpx.ConnectError("refused"),
            httpx.ReadTimeout("slow"),
            httpx.Response(502),
            httpx.Response(503, headers={"Retry-After": "5"}, json={"status": "unavailable"}),
            httpx.Response(200, json={"status": "ok"}),
        )
        assert both.call("wait_ready") is None
        assert {request.url.path for request in script.seen} == {"/health"}
        assert len(script.seen) == 5
        assert both.now < 2.0  # it polls; it does not back off, and does not wait as long as Retry-After

    def test_gives_up_with_the_last_reason(self, kind: str) -> None:
        both, script = scripted(kind, *[httpx.ConnectError("refused")] * 1000)
        with pytest.raises(EngineUnavailable, match=r"not ready after 3\.1 s: cannot connect to .*refused"):
            both.call("wait_ready", 3.1)
        assert both.now == pytest.approx(3.1)
        assert 10 <= len(script.seen) <= 20

    def test_one_look_is_taken_even_without_time(self, kind: str) -> None:
        both, script = scripted(kind, httpx.Response(200))
        both.call("wait_ready", 0)
        assert len(script.seen) == 1

    def test_each_look_is_short(self, kind: str) -> None:
        both, script = scripted(kind, *[httpx.ConnectError("refused")] * 1000)
        with pytest.raises(EngineUnavailable):
            both.call("wait_ready", 8)
        reads = [request.extensions["timeout"]["read"] for request in script.seen]
        assert reads[0] == 5.0
        assert reads[-1] <= 0.25

    def test_a_server_that_is_not_ours_is_no_reason_to_wait(self, kind: str) -> None:
        both, script = scripted(kind, httpx.Response(404, json={"error": ModelNotFound("no").to_wire()}), ok())
        with pytest.raises(ModelNotFound):
            both.call("wait_ready")
        assert len(script.seen) == 1


def test_a_call_that_python_can_refuse_is_never_sent(kind: str) -> None:
    both, script = scripted(kind, ok())
    with pytest.raises(InvalidField):
        both.call("ask", (), "q")
    assert not script.seen
