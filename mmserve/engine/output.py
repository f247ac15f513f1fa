"""OutputStream: a request's chosen tokens become text, events and an end."""

from __future__ import annotations

from collections.abc import Container

from mmserve.engine.sampler import RowLogprobs
from mmserve.engine.sequence import Sequence
from mmserve.prompt import Detokenizer, StopChecker, TokenTable
from mmserve.types import TokenEvent, TokenLogprob, Usage


class OutputStream:
    """The text side of one sequence: detokenising, stop strings, limits, log-probabilities."""

    def __init__(self, seq: Sequence, table: TokenTable, eos_ids: Container[int]) -> None:
        self._seq = seq
        self._params = seq.request.sampling
        self._table = table
        self._detokenizer = Detokenizer(table)
        self._stop = StopChecker(self._params.stop)
        self._eos_ids = eos_ids

    def push(self, token: int, logprobs: RowLogprobs | None) -> TokenEvent:
        """The event of one more token, which the sequence has appended already.

        A token that ends the answer (end of sequence, a stop id) adds no text. Stop strings do not act on the text of
        the first ``min_tokens - 1`` tokens.
        """
        count = len(self._seq.outputs)
        if self._ends(token):
            return self._event(token, logprobs, self._rest(""), "stop")
        text = self._detokenizer.push([token])
        if count >= self._params.min_tokens:
            text = self._stop.push(text)
        if self._stop.stopped is not None:
            return self._event(token, logprobs, text, "stop")
        if self._params.max_tokens is not None and count >= self._params.max_tokens:
            return self._event(token, logprobs, self._rest(text), "length")
        return self._event(token, logprobs, text, None)

    def _rest(self, text: str) -> str:
        """``text`` and what was held back before the end: of an unfinished character, and of a possible stop string."""
        return text + self._stop.push(self._detokenizer.flush()) + self._stop.flush()

    def _ends(self, token: int) -> bool:
        if token in self._params.stop_token_ids:
            return True
        return token in self._eos_ids and not self._params.ignore_eos

    def _event(self, token: int, logprobs: RowLogprobs | None, text: str, reason: str | None) -> TokenEvent:
        details = (self._describe(token, logprobs),) if logprobs is not None else ()
        usage = self._usage() if reason else None
        return TokenEvent(self._seq.id, text, (token,), details, reason, usage)

    def _describe(self, token: int, logprobs: RowLogprobs) -> TokenLogprob:
        top = tuple((id_, self._table.text_of(id_), value) for id_, value in logprobs.top)
        return TokenLogprob(token, self._table.text_of(token), logprobs.chosen, top)

    def _usage(self) -> Usage:
        seq = self._seq
        return Usage(
            prompt_tokens=seq.prompt_length,
            completion_tokens=len(seq.outputs),
            cached_tokens=seq.cached_tokens or 0,
            image_tokens=seq.request.prompt.picture_tokens,
            cached_pictures=seq.cached_pictures,
        )
