"""A captioner over the engine of this process, with no HTTP between: what the web routes do, for one picture."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from mmserve.client import AllOptions, Answer, ConstraintKept
from mmserve.client.calls import split
from mmserve.types import ImagePart, Message, TextPart, Usage

if TYPE_CHECKING:
    from web.service import Service


class DirectCaptioner:
    """Asks ``service`` with the same system prompt and options each time, as ``ClientCaptioner`` asks a server.

    Raises what the server would: ``InvalidField`` and ``ConstraintError`` at once, the others from ``ask``.
    """

    def __init__(self, service: Service, *, system: str | None, options: AllOptions) -> None:
        from web.schemas import VqaFields

        plain, self._shape = split(options)
        said = {name: value for name, value in {**plain, **self._shape.form}.items() if value is not None}
        fields = VqaFields.model_validate({"question": "each picture has its own", **said})
        self._service = service
        self._wanted = fields.wanted()
        self._sampling = fields.sampling(service.sampling)
        self._salt = fields.cache_salt
        self._detail = fields.looking()
        self._system = [Message("system", (TextPart(system),))] if system else []
        self._numbers = itertools.count()

    async def ask(self, data: bytes, prompt: str, /) -> Answer:
        from web.constraints import constraint_of, naming, verdict_on
        from web.generation import Stopwatch, collect, make_requests, offload

        messages = [*self._system, Message("user", (ImagePart(data, self._detail), TextPart(prompt)))]
        built = await offload(len(data), lambda: self._service.prompts.build(messages, cache_salt=self._salt))
        constraint = constraint_of(self._wanted)
        identity = f"caption-{next(self._numbers)}"
        [request] = make_requests(identity, built, self._sampling, self._salt, constraint=constraint)
        with naming(self._wanted):
            [tally] = await collect(self._service.engine, [request], Stopwatch())
        verdict = await verdict_on(self._service.judge, constraint, tally)
        kept = None
        if verdict is not None:
            told = verdict.report
            kept = ConstraintKept(told.step, told.relaxed, told.closed_early, told.forced_tokens, verdict.valid)
        answer = Answer(
            tally.text,
            tally.finish_reason or "",
            tally.usage or Usage(0, 0, 0, 0),
            self._service.model.name,
            id=identity,
            constraint=kept,
        )
        return self._shape.finish(answer)
