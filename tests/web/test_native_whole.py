"""``POST /generate`` over the embedded model: what only the whole can show."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from tests.web.fakes import eventually, serve, sse
from tests.web.test_vqa import error_of
from web.service import ServedModel, Service

EXAMPLES = Path(__file__).parents[2] / "mmserve" / "assets" / "examples"
RED = base64.b64encode((EXAMPLES / "red-circle.png").read_bytes()).decode()
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
ASKED = (
    f"{SYSTEM}<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What color is the circle?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
GREEDY = {"temperature": 0, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def engine(pocket_vl: Checkpoint) -> Iterator[LocalEngineClient]:
    config = EngineConfig(device="cpu", dtype="float32", check_invariants=True)
    client = LocalEngineClient(build_engine(pocket_vl, config))
    yield client
    asyncio.run(client.close())


@pytest.fixture(scope="module")
def server(pocket_vl: Checkpoint, engine: LocalEngineClient) -> Iterator[httpx.Client]:
    limits = Limits()
    model = ServedModel("pocket-vl", family=pocket_vl.family)
    service = Service(model, PromptBuilder(pocket_vl, limits), engine, pocket_vl.max_model_len, limits=limits)
    with serve(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def made(server: httpx.Client, **body: Any) -> Any:
    response = server.post("/generate", json={"text": ASKED, "image_data": RED, "sampling_params": GREEDY} | body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_rendered_prompt_is_the_chats_and_shares_its_prefix(server: httpx.Client) -> None:
    url = {"url": f"data:image/png;base64,{RED}"}
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What color is the circle?"}]
    chat = {"messages": [{"role": "user", "content": content}], "max_tokens": 16, "temperature": 0}
    said = server.post("/v1/chat/completions", json=chat).json()
    answer = made(server)
    assert answer["text"] == said["choices"][0]["message"]["content"] == "red"
    assert answer["meta_info"]["prompt_tokens"] == said["usage"]["prompt_tokens"]
    assert answer["meta_info"]["cached_tokens"] >= answer["meta_info"]["image_tokens"] > 0
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"
    assert made(server, sampling_params=GREEDY | {"skip_special_tokens": False, "no_stop_trim": True})["text"] == (
        "red<|im_end|>"
    )


def test_stream_batch_and_ids_say_the_same(server: httpx.Client) -> None:
    whole = made(server)
    response = server.post(
        "/generate", json={"text": ASKED, "image_data": RED, "sampling_params": GREEDY, "stream": True}
    )
    *chunks, done = sse(response.content)
    assert done == "[DONE]"
    assert chunks[-1]["text"] == whole["text"]
    assert all(whole["text"].startswith(chunk["text"]) for chunk in chunks)
    batch = made(server, text=[ASKED, ASKED])
    assert [answer["output_ids"] for answer in batch] == [whole["output_ids"]] * 2


def test_what_the_answer_was_given_is_what_scoring_it_says(server: httpx.Client) -> None:
    body = {"return_logprob": True, "return_text_in_logprobs": True, "top_logprobs_num": 2}
    meta = made(server, **body, logprob_start_len=0)["meta_info"]
    assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"]
    output = meta["output_token_logprobs"]
    assert "".join(text for _, _, text in output) == "red<|im_end|>"
    again = made(
        server,
        text=ASKED + "red<|im_end|>",
        sampling_params={"max_new_tokens": 0},
        logprob_start_len=meta["prompt_tokens"],
        **body,
    )["meta_info"]
    assert [(id_, text) for _, id_, text in again["input_token_logprobs"]] == [(i, t) for _, i, t in output]
    scored = [value for value, _, _ in again["input_token_logprobs"]]
    assert scored == pytest.approx([value for value, _, _ in output], abs=1e-3)
    assert [best[0][1] for best in again["input_top_logprobs"]] == [id_ for _, id_, _ in output]


def test_a_continuation_has_the_same_probability(server: httpx.Client) -> None:
    url = {"url": f"data:image/png;base64,{RED}"}
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What color is the circle?"}]
    body = {
        "messages": [{"role": "user", "content": content}],
        "questions": [{"type": "continuation", "id": "c", "options": ["red", "blue"], "ends_turn": True}],
    }
    answer = server.post("/v1/decisions", json=body).json()["answers"]["c"]
    meta = made(server, return_logprob=True)["meta_info"]
    assert answer["choice"] == "red"
    assert answer["tokens"]["red"] == len(meta["output_token_logprobs"])
    total = math.fsum(value for value, _, _ in meta["output_token_logprobs"])
    assert answer["logprobs"]["red"] == pytest.approx(total, abs=1e-3)


def test_constraints_are_kept(server: httpx.Client) -> None:
    answer = made(server, sampling_params=GREEDY | {"regex": "(a|the) (red|blue) circle"})
    assert answer["text"] in ("a red circle", "the red circle")
    schema = json.dumps({"type": "object", "properties": {"c": {"enum": ["red", "blue"]}}, "required": ["c"]})
    answer = made(server, sampling_params=GREEDY | {"json_schema": schema, "max_new_tokens": 40}, return_logprob=True)
    assert json.loads(answer["text"])["c"] in ("red", "blue")
    assert len(answer["meta_info"]["output_token_logprobs"]) == len(answer["output_ids"])
    told = server.post("/generate", json={"text": "a", "sampling_params": {"regex": "("}})
    error_of(told, 400, "invalid_constraint", "sampling_params.regex")
    told = server.post("/generate", json={"text": "a", "sampling_params": {"regex": "a{50}", "max_new_tokens": 2}})
    error_of(told, 422, "budget_too_small", "sampling_params.max_new_tokens")


def test_an_aborted_request_gives_its_slots_back(server: httpx.Client, engine: LocalEngineClient) -> None:
    endless = {"text": "a", "rid": "long", "stream": True}
    endless["sampling_params"] = {"max_new_tokens": None, "ignore_eos": True}
    with server.stream("POST", "/generate", json=endless) as response:
        lines = response.iter_lines()
        next(lines)
        with httpx.Client(base_url=server.base_url) as other:
            assert other.post("/abort_request", json={"rid": "long"}).json() == {"aborted": 1}
        last = [line for line in lines if line][-2:]
    assert json.loads(last[0].removeprefix("data: "))["meta_info"]["finish_reason"]["type"] == "abort"
    assert last[1] == "data: [DONE]"
    eventually(lambda: engine.stats()["requests_running"] == 0)
    assert server.get("/health_generate").status_code == 200
