"""Outputs: a request's chosen tokens become text, events and an end; a scored prompt becomes its log-probabilities."""

from __future__ import annotations

from collections.abc import Container, Sequence

from mmserve.engine.sampler import RowLogprobs
from mmserve.engine.sequence import Sequence as RequestState
from mmserve.grammar.state import Advance, GrammarState
from mmserve.prompt import Detokenizer, StopChecker, TokenTable
from mmserve.types import TokenEvent, TokenLogprob, Usage


class OutputStream:
    """The text side of one sequence: detokenising, stop strings, limits, log-probabilities."""

    def __init__(self, seq: RequestState, table: TokenTable, eos_ids: Container[int]) -> None:
        self._seq = seq
        self._params = seq.request.sampling
        self._table = table
        prompt, constraint = seq.request.prompt, seq.request.constraint
        self._detokenizer = Detokenizer(
            table,
            special=not self._params.skip_special_tokens,
            opens=prompt.opens_answer and constraint is None,
        )
        self._stop = StopChecker(self._params.stop)
        self._eos_ids = eos_ids
        self._forced: tuple[int, ...] = ()

    def begin(self, forced: tuple[int, ...]) -> None:
        """Tokens that a grammar put behind the prompt; they come with the first event, so that none is early."""
        self._forced = forced

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

    def push_constrained(self, step: Advance, logprobs: RowLogprobs | None, state: GrammarState) -> TokenEvent:
        """The event of what a grammar made of one more token; its end is the only end, but for stop strings.

        A stop string acts where the text before it is a whole answer; elsewhere it is text. Only a token that was
        chosen has log-probabilities.
        """
        tokens = self._forced + step.tokens
        entries = (describe(self._table, step.tokens[0], logprobs),) if logprobs is not None and step.taken else ()
        self._forced = ()
        text = self._detokenizer.push(tokens[:-1] if step.silent else tokens)
        if len(self._seq.outputs) >= self._params.min_tokens:
            text = self._stop.push(text, state.accepts)
        else:
            self._stop.skip(text)
        if self._stop.stopped is None and not step.ended:
            return TokenEvent(self._seq.id, text, tokens, entries)
        rest = self._rest(text) if self._stop.stopped is None else text
        return TokenEvent(self._seq.id, rest, tokens, entries, "stop", usage_of(self._seq), None, state.report())

    def _rest(self, text: str) -> str:
        """``text`` and what was held back before the end: of an unfinished character, and of a possible stop string."""
        return text + self._stop.push(self._detokenizer.flush()) + self._stop.flush()

    def _ends(self, token: int) -> bool:
        if token in self._params.stop_token_ids:
            return True
        return token in self._eos_ids and not self._params.ignore_eos

    def _event(self, token: int, logprobs: RowLogprobs | None, text: str, reason: str | None) -> TokenEvent:
        details = (describe(self._table, token, logprobs),) if logprobs is not None else ()
        return TokenEvent(self._seq.id, text, (token,), details, reason, usage_of(self._seq) if reason else None)


class ScoreSheet:
    """The log-probabilities of one prompt's tokens from ``score_from`` on, as they come."""

    def __init__(self, seq: RequestState, table: TokenTable) -> None:
        assert seq.request.score_from is not None
        self._seq = seq
        self._table = table
        self._first = seq.request.score_from
        self._scores: dict[int, RowLogprobs] = {}

    def push(self, position: int, scores: Sequence[RowLogprobs]) -> None:
        """Scores of the tokens at ``position`` and behind; those of a sequence that starts over come twice."""
        self._scores.update(enumerate(scores, position))

    @property
    def complete(self) -> bool:
        return len(self._scores) == self._seq.prompt_length - self._first

    def event(self) -> TokenEvent:
        ids = self._seq.request.prompt.token_ids
        entries = tuple(describe(self._table, int(ids[at]), self._scores[at]) for at in sorted(self._scores))
        return TokenEvent(self._seq.id, logprobs=entries, finish_reason="stop", usage=usage_of(self._seq))


def describe(table: TokenTable, token: int, logprobs: RowLogprobs) -> TokenLogprob:
    top = tuple((id_, table.text_of(id_), value) for id_, value in logprobs.top)
    return TokenLogprob(token, table.text_of(token), logprobs.chosen, top)


def usage_of(seq: RequestState) -> Usage:
    prompt, cached = seq.request.prompt, seq.cached_tokens or 0
    return Usage(
        prompt_tokens=seq.prompt_length,
        completion_tokens=len(seq.outputs),
        cached_tokens=cached,
        image_tokens=prompt.picture_tokens,
        cached_pictures=seq.cached_pictures,
        system_tokens=prompt.system_tokens,
        cached_system_tokens=min(cached, prompt.system_tokens),
        video_tokens=prompt.tokens_of("video"),
        audio_tokens=prompt.tokens_of("audio"),
    )
