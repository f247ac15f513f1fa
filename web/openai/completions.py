"""``POST /v1/completions``: raw prompts, and log-probabilities in their old format."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from mmserve.errors import InvalidField, RequestError
from mmserve.types import Prompt, Request, SamplingParams
from web.constraints import Wanted, constraint_of
from web.errors import explain
from web.generation import make_requests
from web.openai.refusals import COMPLETIONS, refuse
from web.schemas import ConstraintFields, SamplingFields, StreamOptions, bias_said
from web.service import Service

MAX_ANSWERS = 256
"""Prompts times ``n``; each is a request of its own to the engine."""

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


class CompletionRequest(SamplingFields, ConstraintFields):
    """The body of ``POST /v1/completions``; unknown fields are kept in ``model_extra``."""

    model_config = ConfigDict(extra="allow")

    prompt: str | list[str] | list[int] | list[list[int]] = Field(
        description="Text as it stands, its special tokens special tokens; or token ids; or a list of either."
    )
    model: str | None = None
    n: int | None = Field(None, ge=1, le=16)
    echo: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = Field(None, ge=0, le=20)  # type: ignore[assignment]
    max_tokens: int | None = Field(None, ge=0, description="16 by default; 0 scores the prompt, with echo.")

    @field_validator("prompt", mode="wrap")
    @classmethod
    def _one_kind(cls, value: object, check: ValidatorFunctionWrapHandler) -> object:
        try:
            return check(value)
        except ValidationError:
            raise ValueError("send text, a list of token ids, or a list of either") from None

    @classmethod
    def parse(cls, body: bytes) -> CompletionRequest:
        """Raises ``InvalidField``."""
        try:
            asked = cls.model_validate_json(body, strict=True)
        except ValidationError as error:
            raise explain(error.errors(include_url=False, include_context=False, include_input=False)) from None
        if asked.top_logprobs is not None:
            raise InvalidField("top_logprobs is not a field here: logprobs is the number", param="top_logprobs")
        if asked.stream_options is not None and not asked.stream:
            raise InvalidField("stream_options is for streams; set stream, or leave it out", param="stream_options")
        scores = bool(asked.echo) and asked.logprobs is not None
        if asked.max_tokens == 0 and not scores:
            raise InvalidField(
                "max_tokens is 0, so nothing is asked for; give echo and logprobs too", param="max_tokens"
            )
        if scores and asked.stream:
            raise InvalidField("the log-probabilities of an echo are not streamed; leave out stream", param="stream")
        extra = asked.model_extra or {}
        if extra.get("best_of") != (asked.n or 1):  # n of n is all of them
            refuse(extra, COMPLETIONS)
        else:
            refuse({name: value for name, value in extra.items() if name != "best_of"}, COMPLETIONS)
        return asked

    @property
    def prompts(self) -> list[str | list[int]]:
        """Raises ``InvalidField`` for an empty list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise InvalidField("prompt is empty; send at least one token", param="prompt")
        if isinstance(self.prompt[0], int):
            return [[id_ for id_ in self.prompt if isinstance(id_, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]

    def unknown_fields(self) -> list[str]:
        """Fields that have no meaning here and are ignored."""
        return [name for name in self.model_extra or {} if name not in COMPLETIONS]

    def _said(self) -> dict[str, object]:
        said = super()._said()
        said["logprobs"] = self.logprobs
        said["max_tokens"] = self.max_tokens or (1 if self.max_tokens == 0 else DEFAULT_MAX_TOKENS)
        return said | bias_said(self.logit_bias)


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One prompt and its answers. ``score`` wants the prompt's own log-probabilities; no ``answers`` with 0 tokens."""

    text: str
    prompt: Prompt
    answers: tuple[Request, ...]
    score: Request | None


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """All that a body asks for; ``n`` choices of each prompt."""

    asked: tuple[Asked, ...]
    sampling: SamplingParams
    n: int
    top: int | None
    echo: bool
    wanted: Wanted | None

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request, prompt by prompt: its answers, then its score."""
        return tuple(r for each in self.asked for r in (*each.answers, *([each.score] if each.score else [])))


def job_of(service: Service, body: CompletionRequest, identity: str) -> Job:
    """CPU work in proportion to the prompts. Raises typed errors whose ``param`` names the field."""
    given, n = body.prompts, body.n or 1
    if len(given) * n > MAX_ANSWERS:
        raise InvalidField(f"at most {MAX_ANSWERS} answers may be asked for at once", param="prompt")
    wanted, sampling, salt = body.wanted(), body.sampling(service.sampling), body.cache_salt or ""
    service.check_bias(sampling)
    asked = []
    for i, each in enumerate(given):
        prompt = _prompt(service, each, salt, "prompt" if len(given) == 1 else f"prompt[{i}]")
        name = identity if len(given) == 1 else f"{identity}-{i}"
        answers = make_requests(name, prompt, sampling, salt, n, constraint_of(wanted))
        silent = body.max_tokens == 0
        score = _score(name, prompt, sampling, salt) if body.echo and body.logprobs is not None else None
        text = service.prompts.decode(prompt.token_ids.tolist(), special=True) if body.echo else ""
        asked.append(Asked(each if isinstance(each, str) else text, prompt, () if silent else answers, score))
    return Job(tuple(asked), sampling, n, body.logprobs, bool(body.echo), wanted)


def _prompt(service: Service, given: str | list[int], salt: str, where: str) -> Prompt:
    try:
        if isinstance(given, str):
            return service.prompts.build_text(given, (), cache_salt=salt)
        return service.prompts.build_ids(given, (), cache_salt=salt)
    except RequestError as error:
        raise type(error)(error.message, param=where) from error


def _score(name: str, prompt: Prompt, sampling: SamplingParams, salt: str) -> Request | None:
    if len(prompt) < 2:  # the first token has no log-probability
        return None
    plain = SamplingParams(max_tokens=1, logprobs=sampling.logprobs)
    return Request(f"{name}-prompt", prompt, plain, salt, score_from=1)
