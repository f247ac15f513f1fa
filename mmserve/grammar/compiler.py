"""Compiles constraints in threads, once each, and keeps the results.

Owns: the threads, and a bounded cache from a constraint's canonical form to its prototype. Does not own: the copies
that are handed out. Failures are not kept: they end early, are rare, and a caller who mends one sends another
constraint, while a cache full of them would push out what is in use.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias

from llguidance import LLMatcher, LLParserLimits

from mmserve.errors import EngineUnavailable, QueueFull, UnsupportedConstraint
from mmserve.grammar.closing import Closer
from mmserve.grammar.hints import hints_of
from mmserve.grammar.lower import lower
from mmserve.grammar.lowered import COMPACT, JsonStyle, Lowered, Step
from mmserve.grammar.refusal import grammar_refusal
from mmserve.grammar.spec import Constraint, JsonSchema, StructuralTag, Tag, XmlSchema
from mmserve.grammar.vocabulary import Vocabulary

Completion: TypeAlias = Callable[[LLMatcher, Sequence[bytes], int, bool], list[int] | None]
"""A search for a completion from a matcher's state: hints, budget in tokens, whether to look for a shorter one."""


def limits() -> LLParserLimits:
    """Work that llguidance may put into one grammar.

    A thread cannot be stopped, so nothing else ends a hostile compile. What the lexer may cost is a fifth of
    llguidance's default; no schema of JSONSchemaBench's sample needs more.
    """
    return LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_items_in_row=2_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


@dataclass(frozen=True, slots=True, eq=False)
class CompiledGrammar:
    """A grammar that is ready for use; immutable, and safe to use from several threads.

    ``step`` says how much of the constraint is enforced, and ``relaxed`` in sentences what is not; what is not
    ``strict`` has to be judged when it is finished. ``completion`` is a whole answer in tokens, without the end of
    sequence; where ``shortened``, no shorter one was found. ``size`` is the length of its source; what llguidance keeps
    of it is some ten times that.
    """

    constraint: Constraint
    step: Step
    relaxed: tuple[str, ...]
    hints: tuple[bytes, ...]
    completion: tuple[int, ...]
    shortened: bool
    size: int
    _prototype: LLMatcher

    def matcher(self) -> LLMatcher:
        """A copy at the start of an answer, whose first mask's work is done already; some microseconds."""
        return self._prototype.deep_copy()


class GrammarCompiler:
    """``threads`` compile at a time, ``queue`` constraints at most wait for them, ``capacity`` results are kept.

    Their sources have at most ``most_bytes`` in all, a single larger one excepted.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        threads: int = 2,
        capacity: int = 256,
        queue: int = 256,
        longest: int = 2048,
        json_style: JsonStyle = COMPACT,
        most_bytes: int = 16 * 1024 * 1024,
        completion: Completion | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._capacity = capacity
        self._queue = queue
        self._longest = longest
        self._json_style = json_style
        self._most_bytes = most_bytes
        self._bytes = 0
        self.closer = closer = Closer(vocabulary)
        """For answers under what is compiled here, whose hints it has worked out then."""
        self._completion = completion or (
            lambda matcher, hints, budget, shorten: closer.find(matcher, hints=hints, budget=budget, shorten=shorten)
        )
        self._limits = limits()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="grammar")
        self._lock = threading.Lock()
        self._done: OrderedDict[Constraint, CompiledGrammar] = OrderedDict()
        self._under_way: dict[tuple[Constraint, bool], Future[CompiledGrammar]] = {}
        self._closed = False
        self._counts = {"compiles": 0.0, "hits": 0.0, "failures": 0.0, "seconds": 0.0}

    def submit(self, constraint: Constraint, budget: int | None = None) -> Future[CompiledGrammar]:
        """The compiled form, at once if it is known. Callers of one constraint share one compile.

        Its completion is the first that is found, which takes little time; only where that is longer than ``budget``
        tokens a shorter one is looked for, which takes more. The future raises ``InvalidConstraint`` and
        ``UnsupportedConstraint``; cancelling it does not hurt others. Raises ``QueueFull`` and, once closed,
        ``EngineUnavailable``.
        """
        future: Future[CompiledGrammar] = Future()
        key = canonical(constraint)

        def compiled(done: Future[CompiledGrammar]) -> None:
            fits = budget is None or done.cancelled() or done.exception() is not None
            if fits or done.result().shortened or len(done.result().completion) <= (budget or 0):
                _pass_on(done, future)
                return
            try:
                self._start(key, shorten=True).add_done_callback(lambda shorter: _pass_on(shorter, future))
            except (QueueFull, EngineUnavailable) as error:
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)

        self._start(key, shorten=False).add_done_callback(compiled)
        return future

    def _start(self, key: Constraint, *, shorten: bool) -> Future[CompiledGrammar]:
        """The job that compiles, or looks for a shorter completion: a new one, or the one that is under way or done."""
        with self._lock:
            if self._closed:
                raise EngineUnavailable("the engine is stopped")
            known = self._done.get(key)
            if known is not None and (known.shortened or not shorten):
                self._done.move_to_end(key)
                self._counts["hits"] += 1
                done: Future[CompiledGrammar] = Future()
                done.set_result(known)
                return done
            shared = self._under_way.get((key, shorten))
            if shared is None:
                if len(self._under_way) >= self._queue:
                    raise QueueFull(f"{self._queue} constraints wait to be compiled already; try again later")
                shared = self._pool.submit(self._run, key, shorten)
                self._under_way[key, shorten] = shared
            else:
                self._counts["hits"] += 1
            return shared

    def stats(self) -> dict[str, float]:
        """``compiles``, ``hits``, ``failures`` so far, ``seconds`` spent on compiles, and how many are ``cached``."""
        with self._lock:
            return {**self._counts, "cached": float(len(self._done)), "waiting": float(len(self._under_way))}

    def close(self) -> None:
        """Drops what waits and returns when the compiles that run are over."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, key: Constraint, shorten: bool) -> CompiledGrammar:
        start = time.perf_counter()
        try:
            compiled = self._compile(key, shorten)
        except BaseException:
            with self._lock:
                self._under_way.pop((key, shorten), None)
                self._counts["failures"] += 1
                self._counts["seconds"] += time.perf_counter() - start
            raise
        with self._lock:
            self._under_way.pop((key, shorten), None)
            replaced = self._done.pop(key, None)
            self._done[key] = compiled
            self._bytes += compiled.size - (replaced.size if replaced is not None else 0)
            while len(self._done) > self._capacity or (len(self._done) > 1 and self._bytes > self._most_bytes):
                _, dropped = self._done.popitem(last=False)
                self._bytes -= dropped.size
            self._counts["compiles"] += 1
            self._counts["seconds"] += time.perf_counter() - start
        return compiled

    def _compile(self, constraint: Constraint, shorten: bool) -> CompiledGrammar:
        with self._lock:
            known = self._done.get(constraint)
        if known is not None and shorten:
            shorter = self._completion(known.matcher(), known.hints, len(known.completion), True)
            completion = known.completion if shorter is None else tuple(shorter)
            return replace(known, completion=completion, shortened=True)
        tried = _Tried(self._vocabulary, self._limits)
        lowered = lower(constraint, tried, self._json_style)
        matcher = tried.matcher(lowered)
        matcher.compute_bitmask()
        if matcher.is_error():
            raise grammar_refusal(matcher.get_error(), lowered.param)
        # A schema's literals one by one, and examples of its patterns, which are nowhere in the lowered form.
        hints = tuple(dict.fromkeys((*hints_of(constraint), *lowered.hints)))
        found = self._completion(matcher, hints, self._longest, shorten)
        if found is None:
            message = f"no answer of at most {self._longest} tokens satisfies the {lowered.param}"
            raise UnsupportedConstraint(message, param=lowered.param)
        size = len(lowered.grammar)
        return CompiledGrammar(constraint, lowered.step, lowered.relaxed, hints, tuple(found), shorten, size, matcher)


def canonical(constraint: Constraint) -> Constraint:
    """The same constraint without what makes no difference: white space in JSON. The order of names stays."""
    if isinstance(constraint, JsonSchema | XmlSchema):
        return replace(constraint, schema=_compact(constraint.schema))
    if isinstance(constraint, StructuralTag):
        return replace(constraint, tags=tuple(map(_canonical_tag, constraint.tags)))
    return constraint


def _canonical_tag(tag: Tag) -> Tag:
    if isinstance(tag.content, JsonSchema | XmlSchema):
        return replace(tag, content=replace(tag.content, schema=_compact(tag.content.schema)))
    return tag


def _compact(text: str) -> str:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return text


class _Tried:
    """Compiles grammars and remembers the last, so that a step that compiles is not compiled twice."""

    def __init__(self, vocabulary: Vocabulary, limits: LLParserLimits) -> None:
        self._tokenizer = vocabulary.tokenizer
        self._limits = limits
        self._grammar = ""
        self._last: LLMatcher | None = None

    def __call__(self, grammar: str) -> str:
        self._grammar = grammar
        # Drops the interpreter's lock; never raises for what the grammar says.
        self._last = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        return self._last.get_error() if self._last.is_error() else ""

    def matcher(self, lowered: Lowered) -> LLMatcher:
        message = "" if self._grammar == lowered.grammar else self(lowered.grammar)
        if message:
            raise grammar_refusal(message, lowered.param)
        assert self._last is not None
        return self._last


def _pass_on(done: Future[CompiledGrammar], future: Future[CompiledGrammar]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if done.cancelled():
        future.set_exception(EngineUnavailable("the engine is stopped"))
        return
    try:
        future.set_result(done.result())
    except CancelledError:
        future.set_exception(EngineUnavailable("the engine is stopped"))
    except BaseException as error:
        future.set_exception(error)
