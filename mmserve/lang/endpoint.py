"""RuntimeEndpoint: the backend over HTTP, at our server or any that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Self

import httpx

from mmserve.client import flow, settings
from mmserve.client.answer import usage_from
from mmserve.client.calls import Call
from mmserve.client.drive import carry_out
from mmserve.client.refusals import NOT_OURS, error_from_body, error_from_transport, not_an_answer
from mmserve.client.sse import SSEParser
from mmserve.errors import EngineUnavailable, InvalidField, MMServeError, RequestError, UnsupportedConstraint
from mmserve.grammar.spec import Choice, Constraint, Grammar, JsonSchema, Regex
from mmserve.lang.calls import Context, GenerateCall, Options, ScoreCall, Scores, Turn
from mmserve.lang.loop import program_loop
from mmserve.lang.state import wire_content
from mmserve.types import ConstraintReport, TokenEvent, TokenLogprob, Usage


class RuntimeEndpoint:
    """A server, by its URL (with or without ``/v1``). Nothing is sent before a program needs it.

    Requests that found no connection, or a full queue, are sent again up to ``retries`` times. ``timeout`` is the
    longest silence, in seconds. ``model`` names one of several models. Choices are scored by ``POST /v1/decisions``;
    where a server cannot do that, by a constrained answer with log-probabilities for each (which counts no end of the
    turn).
    """

    def __init__(
        self,
        base_url: str = settings.DEFAULT_BASE_URL,
        api_key: str | None = None,
        *,
        model: str | None = None,
        timeout: float = settings.DEFAULT_TIMEOUT,
        retries: int = settings.DEFAULT_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        url = settings.server_url(base_url)
        self.base_url = str(url)
        self._model = model
        self._retries = flow.Retries(retries)
        self._has_decisions = True
        self._http = httpx.AsyncClient(transport=transport, **settings.http_settings(url, api_key, timeout))

    async def generate(self, call: GenerateCall) -> AsyncGenerator[TokenEvent, None]:
        body = {
            **self._conversation(call.context),
            **_sampling(call),
            **_wire_constraint(call.constraint),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        wire: Call[None] = Call("POST", "/v1/chat/completions", lambda _: None, {"json": body}, streamed=True)
        response = await carry_out(self._http, flow.exchange(wire, self._retries, self.base_url))
        async with aclosing(response):
            reader = _ChatStream(constrained=call.constraint is not None)
            try:
                async for chunk in response.aiter_bytes():
                    for event in reader.feed(chunk):
                        yield event
                    if reader.done:
                        break
                yield reader.finish()
            except httpx.RequestError as error:
                raise error_from_transport(error, self.base_url) from error
            except NOT_OURS as error:
                raise not_an_answer(response.request.url) from error

    async def score(self, call: ScoreCall) -> Scores:
        if self._has_decisions:
            try:
                return await self._decided(call)
            except RequestError as error:
                unknown = type(error) is RequestError  # no class of ours: the path is not there
                if not unknown and type(error) is not InvalidField:  # it understood, and refuses for another reason
                    raise
            scores = await self._spelled(call)
            # A field that is refused may be this call's alone (too many choices): only a missing path is for good.
            self._has_decisions = not unknown
            return scores
        return await self._spelled(call)

    async def _decided(self, call: ScoreCall) -> Scores:
        """All choices in one request, by a server of ours."""
        question = {
            "type": "continuation",
            "id": "select",
            "options": [{"name": choice} for choice in call.choices],
            "ends_turn": call.ends_turn,
        }
        body = {**self._conversation(call.context), "questions": [question]}

        def read(response: httpx.Response) -> Scores:
            reply = response.json()
            logprobs = reply["answers"]["select"]["logprobs"]
            return Scores(tuple(float(logprobs[choice]) for choice in call.choices), usage_from(reply["usage"]))

        wire = Call("POST", "/v1/decisions", read, {"json": body})
        return await carry_out(self._http, flow.fetch(wire, self._retries, self.base_url))

    async def _spelled(self, call: ScoreCall) -> Scores:
        """A request for each choice that leaves the model no other, for what it thinks of each token all the same."""
        asked = [asyncio.create_task(self._spelled_one(call, choice)) for choice in call.choices]
        try:
            found = await asyncio.gather(*asked)
        finally:  # the first failure ends the others
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return Scores(tuple(logprob for logprob, _ in found), found[0][1])

    async def _spelled_one(self, call: ScoreCall, choice: str) -> tuple[float, Usage | None]:
        only = GenerateCall(call.context, Options(temperature=0.0, logprobs=0), Choice((choice,)))
        entries: list[TokenLogprob] = []
        text, usage = "", None
        async with aclosing(self.generate(only)) as events:
            async for event in events:
                text += event.text
                entries += event.logprobs
                usage = event.usage
        if text != choice or not entries:
            raise UnsupportedConstraint(
                f"{self.base_url} neither scores continuations (/v1/decisions) nor keeps to "
                "structured_outputs with logprobs, so it cannot choose; use gen(regex=...) there",
                param="choices",
            )
        return math.fsum(entry.logprob for entry in entries), usage

    def close(self) -> None:
        """Close the connections."""
        program_loop().run(self._http.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _conversation(self, context: Context) -> dict[str, Any]:
        turns, opening = context.turns, "".join(said.text for said in context.opening)
        body: dict[str, Any] = {} if self._model is None else {"model": self._model}
        body["messages"] = [_message(turn) for turn in turns]
        if opening:
            body["messages"].append({"role": "assistant", "content": opening})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body


class _ChatStream:
    """The bytes of a streamed chat completion -> events; the last one when the stream is complete."""

    def __init__(self, *, constrained: bool) -> None:
        self._events = SSEParser()
        self._constrained = constrained
        self._finish_reason: str | None = None
        self._usage: Mapping[str, Any] | None = None
        self._report: dict[str, Any] = {}
        self.done = False

    def feed(self, chunk: bytes) -> list[TokenEvent]:
        found = [self._take(event) for event in self._events.feed(chunk) if not self.done]
        return [event for event in found if event is not None]

    def finish(self) -> TokenEvent:
        """The last event. Raises ``EngineUnavailable`` where the stream broke off before it."""
        if self._finish_reason is None:
            raise EngineUnavailable("the stream ended before the answer was complete; ask again")
        report = None
        if self._constrained:
            known = {
                name: self._report[name] for name in ("step", "closed_early", "forced_tokens") if name in self._report
            }
            report = ConstraintReport(relaxed=tuple(self._report.get("relaxed", ())), **known)
        usage = None if self._usage is None else usage_from(self._usage)
        return TokenEvent("", finish_reason=self._finish_reason, usage=usage, constraint=report)

    def _take(self, event: str) -> TokenEvent | None:
        if event == "[DONE]":
            self.done = True
            return None
        chunk = json.loads(event)
        if chunk.get("error") is not None:
            raise error_from_body(chunk["error"])
        self._usage = chunk.get("usage") or self._usage
        self._report |= chunk.get("constraint") or {}
        for choice in chunk.get("choices") or ():
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            if "closed_early" in choice:
                self._report["closed_early"] = choice["closed_early"]
            text = (choice.get("delta") or {}).get("content") or ""
            logprobs = tuple(_logprob(entry) for entry in (choice.get("logprobs") or {}).get("content") or ())
            if text or logprobs:
                return TokenEvent("", text, logprobs=logprobs)
        return None


def _logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    """Servers tell the text of tokens, not their ids; -1 stands for one that is not told."""
    top = tuple((-1, each["token"], each["logprob"]) for each in entry.get("top_logprobs") or ())
    return TokenLogprob(-1, entry["token"], entry["logprob"], top)


def _message(turn: Turn) -> dict[str, Any]:
    return {"role": turn.role, "content": wire_content(turn.parts)}


def _sampling(call: GenerateCall) -> dict[str, Any]:
    said = dict(call.options.said())
    top = said.pop("logprobs", None)
    if top is not None:
        said |= {"logprobs": True} | ({"top_logprobs": top} if top else {})
    return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}


def _wire_constraint(constraint: Constraint | None) -> dict[str, Any]:
    match constraint:
        case None:
            return {}
        case JsonSchema(schema, strict):
            named = {"name": "answer", "schema": json.loads(schema)} | ({"strict": True} if strict else {})
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case Regex(pattern):
            return {"structured_outputs": {"regex": pattern}}
        case Grammar(text):
            return {"structured_outputs": {"grammar": text}}
        case Choice(options):
            return {"structured_outputs": {"choice": list(options)}}
    raise MMServeError(f"programs do not send constraints of the kind {type(constraint).__name__}")
