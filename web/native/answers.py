"""Events -> SGLang's answer: ``text``, ``output_ids`` and ``meta_info``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from mmserve.errors import EngineUnavailable
from mmserve.types import TokenEvent, TokenLogprob
from web.constraints import Verdict, chat_choice, chat_extra
from web.generation import Stopwatch, Tally, bounded
from web.matched import matched_stop
from web.native.flights import Aborted, Arrival
from web.native.items import Item
from web.service import PromptBuilder


class Progress:
    """One answer, as its events have made it so far."""

    def __init__(self, item: Item, prompts: PromptBuilder, watch: Stopwatch) -> None:
        self.item = item
        self.tally = Tally()
        """What was generated."""
        self.scored = Tally()
        """What was scored of the prompt."""
        self._prompts = prompts
        self._watch = watch
        self._ids: list[int] = []
        self._logprobs: list[tuple[int, TokenLogprob | None]] = []
        self._open = sum(request is not None for request in (item.generate, item.score))
        self._aborted = False

    @property
    def finished(self) -> bool:
        return self._open == 0

    def add(self, arrival: Arrival, scored: bool) -> None:
        if isinstance(arrival, Aborted):
            self._aborted = True
            self._open -= 1
            return
        self._open -= arrival.last
        if scored:
            self.scored.add(arrival)
            return
        self.tally.add(arrival)
        if self.item.native.max_new_tokens != 0:
            self._ids += arrival.token_ids
            self._logprobs += _aligned(arrival)

    def answer(self, verdict: Verdict | None = None) -> dict[str, Any]:
        """So far, or when finished the whole; cumulative, as SGLang streams it."""
        finish, text = self._finish(), self._text()
        usage = {} if not self.finished or self._aborted else self._usage()
        meta = {
            "id": self.item.rid,
            "finish_reason": finish,
            "prompt_tokens": len(self.item.prompt),
            "completion_tokens": len(self._ids),
            **usage,
            **self._logprob_fields(),
            **({"e2e_latency": self._watch.timing()["total"]} if self.finished else {}),
            **chat_extra([verdict]),
            **chat_choice(verdict),
        }
        return {"text": text, "output_ids": list(self._ids), "meta_info": meta}

    def _usage(self) -> dict[str, int]:
        usages = [tally.usage for tally in (self.tally, self.scored) if tally.usage is not None]
        if not usages:
            raise EngineUnavailable("the engine finished an answer without its token counts; ask again")
        counts = {"cached_tokens": min(usage.cached_tokens for usage in usages)}
        images = self.item.prompt.picture_tokens
        return counts | ({"image_tokens": images} if images else {})

    # -- text and its end ---------------------------------------------------------------------------------------

    def _text(self) -> str:
        native = self.item.native
        if native.max_new_tokens == 0:
            return ""
        matched = self._matched() if self.finished and not self._aborted else None
        text = self.tally.text
        if not native.no_stop_trim or matched is None:
            return text
        return text + (matched if isinstance(matched, str) else self._decode([matched]))

    def _decode(self, ids: Sequence[int]) -> str:
        return self._prompts.decode(ids, special=self.item.native.skip_special_tokens is False)

    def _finish(self) -> dict[str, Any] | None:
        if not self.finished:
            return None
        if self._aborted:
            return {"type": "abort", "message": "Aborted by POST /abort_request", "status_code": None, "err_type": None}
        if self.item.native.max_new_tokens == 0:
            return {"type": "length", "length": 0}
        if self.tally.finish_reason == "length":
            return {"type": "length", "length": len(self._ids)}
        return {"type": "stop", "matched": self._matched()}

    def _matched(self) -> str | int | None:
        request = self.item.generate
        return None if request is None else matched_stop(self.tally, request.sampling, self._prompts)

    # -- log-probabilities --------------------------------------------------------------------------------------

    def _logprob_fields(self) -> dict[str, Any]:
        wanted = self.item.logprobs
        if wanted is None:
            return {}
        prompt = self._prompt_logprobs(wanted.start)
        output = [self._entry(id_, entry) for id_, entry in self._logprobs]
        fields: dict[str, Any] = {
            "input_token_logprobs": [self._entry(id_, entry) for id_, entry in prompt],
            "output_token_logprobs": output,
            "output_token_logprobs_length": len(output),
        }
        known = [entry.logprob for _, entry in prompt if entry is not None]
        if known:
            fields["normalized_prompt_logprob"] = bounded(math.fsum(known) / len(known))
        if wanted.top:
            fields["input_top_logprobs"] = self._top(entry for _, entry in prompt)
            fields["output_top_logprobs"] = self._top(entry for _, entry in self._logprobs)
        return fields

    def _prompt_logprobs(self, start: int) -> list[tuple[int, TokenLogprob | None]]:
        """From ``start`` on, once they are known. A prompt's first token has none."""
        ids = self.item.prompt.token_ids
        if start >= len(ids) or (self.item.score is not None and self.scored.finish_reason is None):
            return []
        first: list[tuple[int, TokenLogprob | None]] = [(int(ids[0]), None)] if start == 0 else []
        return first + [(entry.token_id, entry) for entry in self.scored.logprobs]

    def _entry(self, id_: int, entry: TokenLogprob | None) -> list[Any]:
        text = None
        if self.item.logprobs is not None and self.item.logprobs.text:
            text = self._prompts.decode([id_], special=True) if entry is None else entry.token
        return [None if entry is None else bounded(entry.logprob), id_, text]

    def _top(self, entries: Iterable[TokenLogprob | None]) -> list[Any]:
        assert self.item.logprobs is not None
        text = self.item.logprobs.text
        return [
            None if entry is None else [[bounded(lp), id_, token if text else None] for id_, token, lp in entry.top]
            for entry in entries
        ]


def _aligned(event: TokenEvent) -> Sequence[tuple[int, TokenLogprob | None]]:
    """An entry for each token of ``event``; tokens that a grammar forced were not chosen and have none."""
    entries = list(event.logprobs)
    found: list[tuple[int, TokenLogprob | None]] = []
    for id_ in reversed(event.token_ids):
        mine = entries.pop() if entries and entries[-1].token_id == id_ else None
        found.append((id_, mine))
    return found[::-1]
