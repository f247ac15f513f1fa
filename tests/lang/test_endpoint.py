"""RuntimeEndpoint: what goes over the wire, by a transport without sockets; then against a server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

import mmserve as sgl
from mmserve.errors import (
    ConfigError,
    CorruptPicture,
    EngineUnavailable,
    MMServeError,
    PromptTooLong,
    QueueFull,
    UnsupportedConstraint,
)
from mmserve.lang.expressions import Expr
from tests.lang.conftest import EXAMPLES
from tests.lang.fakes import wait_until

CIRCLE = EXAMPLES / "red-circle.png"


class Shape(BaseModel):
    color: str
    shape: str


def chunk(text: str = "", finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish, **more}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
}


def sse(*chunks: dict[str, Any], done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(each)}\n\n" for each in chunks]
    return "".join([*lines, "data: [DONE]\n\n"] if done else lines).encode()


class Server:
    """Replies by path: bytes are an event stream, a dict is JSON, a tuple is a status and an error."""

    def __init__(self, replies: dict[str, Any]) -> None:
        self._replies = replies
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[httpx.Headers] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append((request.url.path, json.loads(request.content)))
        self.headers.append(request.headers)
        reply = self._replies.get(request.url.path, (404, {"message": "no such route", "code": "not_found"}))
        if callable(reply):
            reply = reply(self.bodies[-1][1])
        if isinstance(reply, bytes):
            return httpx.Response(200, content=reply, headers={"content-type": "text/event-stream"})
        if isinstance(reply, dict):
            return httpx.Response(200, json=reply)
        status, error = reply
        return httpx.Response(status, json={"error": error})

    def endpoint(self, **options: Any) -> sgl.RuntimeEndpoint:
        return sgl.RuntimeEndpoint("http://server.test", transport=httpx.MockTransport(self), **options)


CHAT = "/v1/chat/completions"


@sgl.function
def ask(s: sgl.ProgramState, expr: Expr) -> None:
    s += sgl.system("Be brief.")
    s += sgl.user(sgl.image(CIRCLE) + "What?")
    s += sgl.assistant(expr)


def test_a_generation_is_a_streamed_chat_completion() -> None:
    server = Server({CHAT: sse(chunk("a "), chunk("circle"), chunk(finish="stop"), USAGE)})
    with server.endpoint(api_key="secret", model="pocket-vl") as endpoint:
        state = ask.run(sgl.gen("x", 9, temperature=0.5, stop=".", top_k=3), backend=endpoint)
        assert state["x"] == "a circle"
        assert list(state.text_iter("x")) == ["a ", "circle"]
    assert server.headers[0]["authorization"] == "Bearer secret"
    uri = "data:image/png;base64," + base64.b64encode(CIRCLE.read_bytes()).decode()
    assert server.bodies == [
        (
            CHAT,
            {
                "model": "pocket-vl",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": uri}},
                            {"type": "text", "text": "What?"},
                        ],
                    },
                ],
                "max_tokens": 9,
                "temperature": 0.5,
                "stop": ["."],
                "top_k": 3,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        )
    ]
    info = state.get_meta_info("x")
    assert (info["finish_reason"], info["prompt_tokens"], info["cached_tokens"]) == ("stop", 9, 4)


def test_an_open_turn_is_continued() -> None:
    server = Server({CHAT: sse(chunk("red"), chunk(finish="stop"))})
    with server.endpoint() as endpoint:
        state = ask.run("It is " + sgl.gen("x") + ", " + sgl.gen("y"), backend=endpoint)
        assert state["y"] == "red"
    first, second = (body for _, body in server.bodies)
    assert first["messages"][-1] == {"role": "assistant", "content": "It is "}
    assert second["messages"][-1] == {"role": "assistant", "content": "It is red, "}
    assert first["continue_final_message"] is True
    assert first["add_generation_prompt"] is False
    assert first["max_tokens"] == 128


@pytest.mark.parametrize(
    ("expr", "body"),
    [
        (lambda: sgl.gen("x", regex="a+"), {"structured_outputs": {"regex": "a+"}}),
        (lambda: sgl.gen("x", ebnf="root ::= 'a'"), {"structured_outputs": {"grammar": "root ::= 'a'"}}),
        (
            lambda: sgl.gen("x", json_schema={"type": "object"}),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
    ],
)
def test_forms_in_the_fields_field(expr: Callable[[], Expr], body: dict[str, Any]) -> None:
    server = Server({CHAT: sse(chunk("aa"), chunk(finish="stop", closed_early=True))})
    with server.endpoint() as endpoint:
        state = ask.run(expr(), backend=endpoint)
        assert state.get_meta_info("x")["constraint"].closed_early
    sent = server.bodies[0][1]
    assert body.items() <= sent.items()
    assert "max_tokens" not in sent  # what has a form to keep comes out whole


def test_logprobs_and_reports_come_along() -> None:
    entry = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.5}]}
    report = {"step": "lenient", "relaxed": ["no pattern"]}
    server = Server(
        {CHAT: sse(chunk("a", logprobs={"content": [entry]}), {**chunk(finish="stop"), "constraint": report})}
    )
    with server.endpoint() as endpoint:
        state = ask.run(sgl.gen("x", regex="a", return_logprob=True, top_logprobs_num=1), backend=endpoint)
        info = state.get_meta_info("x")
    assert server.bodies[0][1]["logprobs"] is True
    assert server.bodies[0][1]["top_logprobs"] == 1
    assert [(each.token, each.logprob, each.top) for each in info["logprobs"]] == [("a", -0.5, ((-1, "b", -1.5),))]
    assert (info["constraint"].step, info["constraint"].relaxed) == ("lenient", ("no pattern",))


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        ((400, {"message": "too long", "code": "context_length_exceeded"}), PromptTooLong, "too long"),
        ((429, {"message": "full", "code": "queue_full"}), QueueFull, "full"),
        (sse(chunk("a"), done=False), EngineUnavailable, "ended before the answer was complete"),
        (sse(chunk("a"), {"error": {"message": "died", "code": "engine_unavailable"}}), EngineUnavailable, "died"),
        (b"data: {]\n\n", MMServeError, "something else than an answer"),
    ],
)
def test_what_goes_wrong_is_typed_and_has_the_programs_line(reply: Any, error: type[Exception], message: str) -> None:
    with Server({CHAT: reply}).endpoint(retries=0) as endpoint:
        state = ask.run(sgl.gen("x"), backend=endpoint)
        with pytest.raises(error, match=message) as caught:
            state["x"]
    assert '[gen "x" in test_endpoint.py' in str(caught.value)


def test_the_implied_limit_gives_way_over_the_wire_too() -> None:
    def reply(body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            return 400, {"message": "no room", "code": "context_length_exceeded", "param": "max_tokens"}
        return sse(chunk("short"), chunk(finish="length"))

    with Server({CHAT: reply}).endpoint() as endpoint:
        assert ask.run(sgl.gen("x"), backend=endpoint)["x"] == "short"


def test_choices_are_scored_in_one_request() -> None:
    logprobs = {"yes": -0.1, "no": -2.5}
    usage = {"prompt_tokens": 20, "completion_tokens": 0}
    server = Server({"/v1/decisions": {"answers": {"select": {"logprobs": logprobs}}, "usage": usage}})
    with server.endpoint() as endpoint:
        state = ask.run("I say " + sgl.select("x", ["no", "yes"]), backend=endpoint)
        assert state["x"] == "yes"
    ((path, body),) = server.bodies
    assert path == "/v1/decisions"
    assert body["questions"] == [
        {"type": "continuation", "id": "select", "options": [{"name": "no"}, {"name": "yes"}], "ends_turn": True}
    ]
    assert body["messages"][-1] == {"role": "assistant", "content": "I say "}
    assert body["continue_final_message"] is True
    assert list(state.get_meta_info("x")["choice_logprobs"].values()) == [-2.5, -0.1]


def test_a_server_that_does_not_score_is_asked_for_each_choice_alone() -> None:
    """And is not asked to score again."""

    def reply(body: dict[str, Any]) -> bytes:
        (choice,) = body["structured_outputs"]["choice"]
        entries = [{"token": letter, "logprob": -0.5 if choice == "yes" else -2.0} for letter in choice]
        return sse(chunk(choice, logprobs={"content": entries}), chunk(finish="stop"))

    server = Server({CHAT: reply})
    with server.endpoint() as endpoint:
        for _ in range(2):
            state = ask.run(sgl.select("x", ["no", "yes"]), backend=endpoint)
            assert state["x"] == "yes"
    assert state.get_meta_info("x")["choice_logprobs"] == {"no": -4.0, "yes": -1.5}
    assert [path for path, _ in server.bodies].count("/v1/decisions") == 1


def test_a_server_that_cannot_choose_at_all_is_told_so() -> None:
    with Server({CHAT: sse(chunk("whatever"), chunk(finish="stop"))}).endpoint() as endpoint:
        state = ask.run(sgl.select("x", ["no", "yes"]), backend=endpoint)
        with pytest.raises(UnsupportedConstraint, match=r'so it cannot choose; use gen\(regex=...\) .* \[select "x"'):
            state["x"]


def test_an_address_that_is_none_is_refused_at_once_and_a_dead_one_at_the_read() -> None:
    with pytest.raises(ConfigError, match="a server's URL is like"):
        sgl.RuntimeEndpoint("localhost")
    with sgl.RuntimeEndpoint("http://127.0.0.1:9", retries=0) as endpoint:
        state = ask.run(sgl.gen("x"), backend=endpoint)
    with pytest.raises(EngineUnavailable, match=r"cannot connect to .* is the server running"):
        state["x"]


# -- against a server -------------------------------------------------------------------------------------------


@sgl.function
def everything(s: sgl.ProgramState) -> None:
    s += sgl.user_begin() + sgl.image(CIRCLE)
    forks = s.fork(2)
    for i, question in enumerate(["What color is the circle?", "is there a red shape?"]):
        forks[i] += question + sgl.user_end()
        forks[i] += sgl.assistant(sgl.gen(f"fork_{i}"))
    s += "What is this?" + sgl.user_end()
    s += sgl.assistant("a" + sgl.gen("open") + sgl.gen("more", 4, ignore_eos=True))
    s += sgl.user("Describe the picture as JSON.")
    s += sgl.assistant(sgl.gen("json", 40, json_schema=Shape))
    s += forks.join()


def test_the_same_comes_over_http_as_in_process(engine: sgl.Engine, endpoint: sgl.RuntimeEndpoint) -> None:
    local, remote = (everything.run(backend=backend) for backend in (engine, endpoint))
    for name in ("fork_0", "fork_1", "open", "more", "json"):
        assert remote[name] == local[name]
    assert (remote["fork_0"], remote["fork_1"], remote["open"]) == ("red", "yes", " red circle")
    Shape.model_validate_json(remote["json"])
    assert max(remote.get_meta_info(name)["cached_tokens"] for name in ("fork_0", "fork_1", "open")) > 0


def test_selecting_over_http(endpoint: sgl.RuntimeEndpoint) -> None:
    state = ask.run(sgl.select("x", ["blue", "red"]), backend=endpoint)
    again = ask.run(sgl.gen("x", choices=["a dog", "a red circle"]), backend=endpoint)
    assert sum(state.get_meta_info("x")["probabilities"].values()) == pytest.approx(1.0)
    assert again["x"] == "a red circle"


def test_streaming_over_http(endpoint: sgl.RuntimeEndpoint) -> None:
    with ask.run(sgl.gen("x", 20, ignore_eos=True), backend=endpoint, stream=True) as state:
        pieces = list(state.text_iter("x"))
    assert len(pieces) > 5


def test_errors_come_over_http_as_they_are(endpoint: sgl.RuntimeEndpoint) -> None:
    @sgl.function
    def broken(s: sgl.ProgramState) -> None:
        s += sgl.user(sgl.image(CIRCLE.read_bytes()[:300]) + "What?")
        s += sgl.assistant(sgl.gen("x"))

    with pytest.raises(CorruptPicture):
        broken.run(backend=endpoint)["x"]


# -- Runtime ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime() -> Iterator[sgl.Runtime]:
    with sgl.Runtime("pocket-vl", device="cpu", max_running=4) as runtime:
        yield runtime


def test_a_runtime_is_a_server_and_its_endpoint(runtime: sgl.Runtime) -> None:
    stats = httpx.get(f"{runtime.url}/server_info").json()
    assert stats
    assert ask.run(sgl.gen("x"), backend=runtime)["x"]


def test_a_server_that_goes_away_in_the_middle_is_told_at_the_read(runtime: sgl.Runtime) -> None:
    """And nothing hangs or is left running."""

    @sgl.function
    def endless(s: sgl.ProgramState) -> None:
        s += sgl.user("hello") + sgl.assistant(sgl.gen("x", 8000, ignore_eos=True))
        s += sgl.user("and") + sgl.assistant(sgl.gen("y"))

    state = endless.run(backend=runtime, stream=True)
    assert next(state.text_iter("x"))
    runtime.shutdown()
    with pytest.raises(EngineUnavailable, match=r'\[gen "x" in test_endpoint.py'):
        state["y"]
    wait_until(lambda: state._transcript.run._open == 0)
    assert runtime._process.poll() is not None


def test_a_runtime_that_cannot_start_says_what_the_server_said() -> None:
    with pytest.raises(ConfigError, match="there is no model 'no-such-model'"):
        sgl.Runtime("no-such-model")
