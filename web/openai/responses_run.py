"""One response: from a body to its prompt, and from events to its answer or stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from mmserve.errors import InvalidField, MMServeError
from mmserve.sampling import SamplingParams
from mmserve.types import Prompt
from mmserve.types import Request as EngineRequest
from web.constraints import Verdict, Wanted, chat_choice, chat_extra, constraint_of, verdict_on
from web.generation import Tally, generate, images_json, logprobs_json, make_requests, usage_json
from web.openai.reply import finish_of, reader_of
from web.openai.responses_body import ResponsesRequest
from web.openai.responses_items import Conversation
from web.openai.responses_output import Output
from web.openai.responses_store import Kept, ResponseStore
from web.openai.tools import Toolbox
from web.openai.turns import turns_of
from web.schemas import ChatRequest, chat_messages
from web.service import Service
from web.sse import frame


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What a body comes to; ``size`` is the body's in bytes."""

    asked: ResponsesRequest
    prompt: Prompt
    sampling: SamplingParams
    wanted: Wanted | None
    toolbox: Toolbox | None
    size: int
    identity: str = field(default_factory=lambda: f"resp_{secrets.token_hex(24)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def request(self) -> EngineRequest:
        salt = self.asked.cache_salt or ""
        return make_requests(self.identity, self.prompt, self.sampling, salt, 1, constraint_of(self.wanted))[0]


def job_of(service: Service, store: ResponseStore, body: bytes) -> Job:
    """CPU work in proportion to the body and what it goes on from. Raises typed errors that name the field."""
    asked = ResponsesRequest.parse(body)
    service.find_model(asked.model)
    if asked.kept and len(body) > store.max_bytes:
        raise InvalidField("the input is too large to be kept here; send store: false", param="store")
    wanted, toolbox, sampling = asked.wanted(), asked.toolbox(), asked.sampling(service.sampling)
    service.check_bias(sampling)
    conversation = Conversation()
    if asked.instructions:
        conversation.add({"role": "system", "content": asked.instructions}, "instructions", exact=False)
    if asked.previous_response_id is not None:
        before = store.conversation(asked.previous_response_id, "previous_response_id")
        conversation.add_items(before, "previous_response_id", exact=False)
    conversation.add_items(asked.items, "input")
    if not conversation.messages:
        raise InvalidField("there is nothing to answer; send text or a message", param="input")
    with conversation.named():
        turns = turns_of(chat_messages(ChatRequest(messages=conversation.messages), service.shelf), toolbox)
        with turns.named():
            prompt = service.prompts.build(turns.messages, cache_salt=asked.cache_salt or "")
    whole = toolbox.wanted(wanted) if toolbox is not None else wanted
    return Job(asked, prompt, sampling, whole, toolbox, len(body))


class Run:
    """The answer of one job, on its way."""

    def __init__(self, service: Service, store: ResponseStore, job: Job) -> None:
        self._service = service
        self._store = store
        self._job = job
        self._output = Output()
        self._tally = Tally()
        self._numbers = count()

    async def answer(self) -> dict[str, Any]:
        """The whole response. Raises typed errors."""
        async with aclosing(self._events()) as events:
            async for event in events:
                last = event
        response: dict[str, Any] = last["response"]
        return response

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The stream; its first frame comes with the answer's first token. A failure later is its last event."""
        begun = False
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    begun = True
                    yield self._frame(event)
        except MMServeError as error:
            if not begun:
                raise
            failure = {"code": "server_error", "message": error.message}
            yield self._frame({"type": "response.failed", "response": self._response("failed") | {"error": failure}})

    async def _events(self) -> AsyncGenerator[dict[str, Any], None]:
        request = self._job.request()
        reader = reader_of(self._job.toolbox, request.constraint)
        begun = False
        async with aclosing(generate(self._service.engine, [request])) as events:
            async for _, event in events:
                if not begun:
                    yield {"type": "response.created", "response": self._response("in_progress")}
                    yield {"type": "response.in_progress", "response": self._response("in_progress")}
                    begun = True
                self._tally.add(event)
                pieces = reader.push(event.text) + (reader.flush() if event.last else [])
                for told in self._output.push(pieces, self._logprobs(event.logprobs)):
                    yield told
        verdict = await verdict_on(self._service.judge, request.constraint, self._tally)
        for told in self._finish(verdict):
            yield told

    def _finish(self, verdict: Verdict | None) -> Iterator[dict[str, Any]]:
        called = any(item["type"] == "function_call" for item in self._output.items)
        reason = finish_of(self._tally, called, self._job.toolbox, verdict)
        status = "incomplete" if reason == "length" else "completed"
        yield from self._output.finish(status)
        response = self._response(status) | chat_extra([verdict]) | chat_choice(verdict)
        response["usage"] = _usage(usage_json([self._tally.usage]))
        response["images"] = images_json(self._job.prompt)
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(time.time())
        if self._job.asked.kept:
            size = self._job.size + len(json.dumps(response))
            kept = Kept(response, self._job.asked.items, self._job.asked.previous_response_id, size)
            response["store"] = self._store.put(self._job.identity, kept)
        yield {"type": f"response.{status}", "response": response}

    def _logprobs(self, entries: Any) -> list[dict[str, Any]]:
        if self._job.sampling.logprobs is None:
            return []
        content: list[dict[str, Any]] = logprobs_json(entries, self._service.prompts.token_bytes)["content"]
        return content

    def _response(self, status: str) -> dict[str, Any]:
        asked = self._job.asked
        format_ = asked.text.format if asked.text is not None else None
        return {
            "id": self._job.identity,
            "object": "response",
            "created_at": self._job.created,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self._service.model.name,
            "output": list(self._output.items),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": asked.kept,
            "temperature": self._job.sampling.temperature,
            "text": {"format": format_ or {"type": "text"}},
            "tool_choice": "auto" if asked.tool_choice is None else asked.tool_choice,
            "tools": [tool.model_dump() for tool in asked.tools or ()],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": self._job.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
            "metadata": asked.metadata or {},
        }

    def _frame(self, event: dict[str, Any]) -> bytes:
        numbered = {"type": event["type"], "sequence_number": next(self._numbers)} | event
        return f"event: {event['type']}\n".encode() + frame(numbered)


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": usage["prompt_tokens_details"],
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
