"""Values that are being computed: a slot for each, and the variables of programs, which are read while they grow."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any, Generic, TypedDict, TypeVar

from mmserve.lang.calls import Said
from mmserve.lang.errors import Failed, Place
from mmserve.lang.log import Log
from mmserve.types import ConstraintReport, TokenLogprob

T = TypeVar("T")


class MetaInfo(TypedDict, total=False):
    """What is known of a generation beside its text; a key is missing where the backend did not tell.

    ``probabilities`` (of a choice among the choices, summing to 1), ``choice_logprobs`` (of each, under the model) and
    ``label_mass`` (the probability that the model gives to all choices together) are those of a ``select``. Counts are
    in tokens; ``cached_tokens`` of the prompt were not computed again.
    """

    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    image_tokens: int
    cached_pictures: int
    logprobs: list[TokenLogprob]
    constraint: ConstraintReport
    probabilities: dict[str, float]
    choice_logprobs: dict[str, float]
    label_mass: float


class Slot(Generic[T]):
    """One value, set once: readers wait for it, in threads (``get``) or in an event loop (``wait``)."""

    def __init__(self, place: Place | None) -> None:
        self.place = place
        self._future: Future[T] = Future()

    @property
    def done(self) -> bool:
        return self._future.done()

    @property
    def failure(self) -> Failed | None:
        """Why there will be no value; ``None`` while there may be one."""
        error = self._future.exception() if self._future.done() else None
        return error if isinstance(error, Failed) else None

    def succeed(self, value: T) -> None:
        self._future.set_result(value)

    def fail(self, error: BaseException) -> None:
        self._future.set_exception(error if isinstance(error, Failed) else Failed(error, self.place))

    def get(self) -> T:
        """The value. Raises the typed error of its computation, with the program's line in the message."""
        try:
            return self._future.result()
        except Failed as failed:
            raise failed.fresh() from failed.error

    async def wait(self) -> T:
        """The value. Raises ``Failed``."""
        return await asyncio.shield(asyncio.wrap_future(self._future))


class Variable(Slot[Said]):
    """What one ``gen`` or ``select`` writes. ``pieces`` is its text as it comes; it is closed at the end, also by a
    failure. ``meta`` is complete once the slot is done."""

    def __init__(self, place: Place | None) -> None:
        super().__init__(place)
        self.pieces: Log[str] = Log()
        self.meta: MetaInfo = {}

    @classmethod
    def known(cls, text: str) -> Variable:
        made = cls(None)
        made.pieces.append(text)
        made.succeed(Said(text))
        return made

    def succeed(self, value: Said) -> None:
        super().succeed(value)
        self.pieces.close()

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self.pieces.close()

    def report(self) -> dict[str, Any]:
        """``meta``, once all is there. Raises as ``get`` does."""
        self.get()
        return dict(self.meta)
