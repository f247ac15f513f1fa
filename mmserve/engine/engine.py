"""Engine: the loop's body. Plan, execute, update, and turn what came out into events.

Single threaded but for the pool that decodes media; ``mmserve.engine.local`` gives it a thread and asyncio callers.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

from mmserve.config import EngineConfig
from mmserve.engine.limits import check_budget, resolve_limits
from mmserve.engine.masks import MaskFill, MaskFiller
from mmserve.engine.output import OutputStream, ScoreSheet
from mmserve.engine.plan import SchedulerOutput
from mmserve.engine.runner import Masks, Prepared, RunnerOutput
from mmserve.engine.sampler import RowLogprobs
from mmserve.engine.scheduler import Scheduler
from mmserve.engine.sequence import Sequence
from mmserve.engine.stages import StageClock
from mmserve.errors import EngineUnavailable, MMServeError
from mmserve.grammar.compiler import CompiledGrammar, GrammarCompiler
from mmserve.grammar.lowered import JsonStyle
from mmserve.grammar.spec import Constraint
from mmserve.grammar.state import GrammarState
from mmserve.grammar.vocabulary import Vocabulary
from mmserve.types import ContentHash, IntArray, MediaItem, Prompt, Request, TokenEvent

log = logging.getLogger(__name__)


class StepRunner(Protocol):
    """What the loop needs of a runner. ``execute`` raises ``EngineUnavailable`` where it never can again."""

    @property
    def num_slots(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...
    @property
    def tier_slots(self) -> int: ...
    def prepare(self, item: MediaItem) -> Prepared: ...
    def put_prepared(self, content: ContentHash, prepared: Prepared) -> None: ...
    def execute(self, plan: SchedulerOutput, masks: Masks | None = None) -> RunnerOutput: ...
    def close(self) -> None: ...


class Positions(Protocol):
    """A family's position ids: int64 ``(axes, len(prompt))`` and the position of the first generated token."""

    def __call__(self, prompt: Prompt, /) -> tuple[IntArray, int]: ...


@dataclass(frozen=True, slots=True)
class Outputs:
    """What makes an engine's outputs: text of a sequence's tokens, and the scores of a prompt's."""

    new_stream: Callable[[Sequence], OutputStream]
    new_sheet: Callable[[Sequence], ScoreSheet]


class Engine:
    """Requests in, events out, one step at a time.

    ``idle`` says that the last step found nothing to do: the next can do nothing either before a request comes or
    goes or a media item is ready. ``on_wake`` is called from a decoding thread when one is, so that a sleeping loop
    goes on.
    """

    def __init__(
        self,
        runner: StepRunner,
        config: EngineConfig,
        *,
        positions: Positions,
        whole_pictures: bool = False,
        outputs: Outputs,
        vocabulary: Vocabulary,
        json_style: JsonStyle,
        eos_ids: tuple[int, ...],
        max_model_len: int,
        on_wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._runner = runner
        self._config = config
        self._positions = positions
        self._outputs = outputs
        self.max_model_len = min(max_model_len, runner.num_slots)
        self.scheduler = Scheduler(
            config,
            num_slots=runner.num_slots,
            row_bytes=runner.row_bytes,
            eos_ids=eos_ids,
            tier_slots=runner.tier_slots,
            whole_pictures=whole_pictures,
        )
        self._streams: dict[str, OutputStream] = {}
        self._sheets: dict[str, ScoreSheet] = {}
        self._grammars: dict[str, GrammarState] = {}
        self._stages = StageClock()
        self._compiler = GrammarCompiler(vocabulary, threads=config.grammar_threads, json_style=json_style)
        self._masks = MaskFiller(vocabulary.mask_words, config.grammar_threads)
        self._threads = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="mmserve-decode")
        self._prepared: SimpleQueue[tuple[ContentHash, Future[Prepared]]] = SimpleQueue()
        self.on_wake = on_wake
        self.idle = True

    def resolve(self, request: Request) -> Request:
        """The request with its limits filled in. Raises ``PromptTooLong`` when it can never fit. Thread safe."""
        return resolve_limits(request, self.max_model_len)

    def compile(self, constraint: Constraint, budget: int | None = None) -> Future[CompiledGrammar]:
        """Compile a constraint in a thread, once for all that have it, for answers of ``budget`` tokens.

        The future raises ``ConstraintError``. Thread safe; the loop never waits for it.
        """
        return self._compiler.submit(constraint, budget)

    def add(self, request: Request, grammar: CompiledGrammar | None = None) -> None:
        """Take a resolved request whose seed is set, with its constraint's compiled form.

        Raises ``BudgetTooSmall`` where no whole answer fits its ``max_tokens``.
        """
        if grammar is not None:
            check_budget(request, len(grammar.completion))
        state = self._new_state(request, grammar) if grammar is not None else None
        positions, next_position = self._positions(request.prompt)
        seq = self.scheduler.add(request, positions, next_position)
        self._stages.added(seq.id, request.prompt)
        try:
            if request.score_from is not None:
                self._sheets[seq.id] = self._outputs.new_sheet(seq)
            else:
                self._streams[seq.id] = self._outputs.new_stream(seq)
            if state is not None:
                self._grammars[seq.id] = state
                if self._config.fast_forward and not request.sampling.stop:
                    self._begin(seq, state)
        except Exception:
            self._end(seq)
            raise

    def abort(self, request_id: str) -> None:
        """Forget a request and free what it holds; unknown ids are ignored, since it may just have ended."""
        seq = self.scheduler.get(request_id)
        if seq is not None:
            self.scheduler.counters.requests_aborted += 1
            self._end(seq)

    @property
    def has_requests(self) -> bool:
        return self.scheduler.has_requests

    @property
    def warm(self) -> bool:
        """Whether a step that computed has been completed."""
        return self.scheduler.counters.steps > 0

    def step(self, *, wait: bool = False) -> list[TokenEvent]:
        """One turn of the loop. ``wait`` blocks for a media item's decoding when nothing else can be done."""
        events = self._collect_prepared(wait=False)
        plan = self.scheduler.schedule()
        self._stages.planned(plan)
        for item in plan.prepare:
            self._prepare(item)
        self.idle = not (plan.for_device or plan.prepare or events or self.scheduler.has_running)
        if plan.for_device:
            events += self._run(plan)
        elif wait and not events and self.scheduler.has_requests:
            events += self._collect_prepared(wait=True)
        if self._config.check_invariants:
            self.scheduler.check()
        return events

    def flush(self) -> int:
        """Empty the caches of what no request is using; returns the number of tokens dropped."""
        return self.scheduler.flush()

    def stats(self) -> dict[str, float]:
        grammar = {f"grammar_{name}": value for name, value in self._compiler.stats().items()}
        return self.scheduler.counters.snapshot() | self.scheduler.gauges() | grammar

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._compiler.close()
        self._masks.close()
        self._runner.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _run(self, plan: SchedulerOutput) -> list[TokenEvent]:
        masks = self._fill_masks(plan)
        try:
            output = self._runner.execute(plan, masks)
        except Exception as error:
            if masks is not None:
                masks.settle()
            if isinstance(error, EngineUnavailable):  # the runner is gone for good: no request can be computed any more
                raise
            log.exception("a step failed; the requests in it are ended")
            for content in plan.encode:
                self._stages.dropped(content)
            failure = MMServeError(f"the engine failed while computing this request: {type(error).__name__}")
            return [self._fail(seq, failure) for seq in self.scheduler.execution_failed(plan)]
        self.scheduler.update(plan, output.damaged)
        self._stages.executed(plan)
        if output.times is not None:
            self.scheduler.observe(output.times)
        events = self._take_scores(plan, output)
        for sequence_id, token in output.tokens.items():
            seq = self.scheduler.get(sequence_id)
            assert seq is not None
            try:
                event = self._take_token(seq, token, output.logprobs[sequence_id])
            except Exception as error:
                log.exception("an answer could not be continued; its request is ended")
                failure = MMServeError(f"the engine failed while writing this answer: {type(error).__name__}")
                events.append(self._fail(seq, failure))
                continue
            events.append(self._finish(seq, event))
        return events

    def _fill_masks(self, plan: SchedulerOutput) -> MaskFill | None:
        if not self._grammars:
            return None
        choosing = [chunk.sequence_id for chunk in plan.chunks if chunk.row is not None]
        return self._masks.start({id_: self._grammars[id_].matcher for id_ in choosing if id_ in self._grammars})

    def _take_token(self, seq: Sequence, token: int, logprobs: RowLogprobs | None) -> TokenEvent:
        state = self._grammars.get(seq.id)
        if state is None:
            self.scheduler.append(seq, [token])
            return self._streams[seq.id].push(token, logprobs)
        step = state.advance(token)
        self.scheduler.append(seq, step.tokens)
        return self._streams[seq.id].push_constrained(step, logprobs, state)

    def _take_scores(self, plan: SchedulerOutput, output: RunnerOutput) -> list[TokenEvent]:
        events: list[TokenEvent] = []
        for chunk in plan.chunks if self._sheets else ():
            sheet = self._sheets.get(chunk.sequence_id)
            if sheet is None:
                continue
            if chunk.targets is not None:
                sheet.push(chunk.start + chunk.scored[0] + 1, output.scores[chunk.sequence_id])
            seq = self.scheduler.get(chunk.sequence_id)
            if sheet.complete and seq is not None:
                events.append(self._finish(seq, sheet.event()))
        return events

    def _finish(self, seq: Sequence, event: TokenEvent) -> TokenEvent:
        if event.last:
            counters = self.scheduler.counters
            counters.requests_finished += 1
            if event.constraint is not None:
                counters.forced_tokens += event.constraint.forced_tokens
                counters.closed_early += event.constraint.closed_early
            event = dataclasses.replace(event, stages=self._stages.end(seq.id))
            self._end(seq)
        return event

    def _new_state(self, request: Request, grammar: CompiledGrammar) -> GrammarState:
        sampling = request.sampling
        assert sampling.max_tokens is not None
        return GrammarState(
            grammar,
            self._compiler.closer,
            budget=sampling.max_tokens,
            fast_forward=self._config.fast_forward and sampling.logprobs is None and not sampling.stop,
            stop_ids=sampling.stop_token_ids,
        )

    def _begin(self, seq: Sequence, state: GrammarState) -> None:
        """Put what the grammar forces at the start behind the prompt; it is computed with it."""
        forced = state.begin()
        if forced:
            self.scheduler.append(seq, forced)
            self._streams[seq.id].begin(forced)

    def _prepare(self, item: MediaItem) -> None:
        def done(future: Future[Prepared]) -> None:
            self._prepared.put((item.content, future))
            self.on_wake()

        self._threads.submit(self._runner.prepare, item).add_done_callback(done)

    def _collect_prepared(self, *, wait: bool) -> list[TokenEvent]:
        events: list[TokenEvent] = []
        while True:
            try:
                content, future = self._prepared.get(block=wait)
            except Empty:
                return events
            wait = False
            if future.cancelled():
                self._stages.dropped(content)
                continue
            error = future.exception()
            if error is None:
                self._runner.put_prepared(content, future.result())
                self.scheduler.prepared(content)
                continue
            if not isinstance(error, MMServeError):
                log.error("a media item could not be prepared", exc_info=error)
                error = MMServeError(
                    f"the engine failed while decoding a picture, video or sound: {type(error).__name__}"
                )
            self._stages.dropped(content)
            events += [self._fail(seq, error) for seq in self.scheduler.preparation_failed(content)]

    def _fail(self, seq: Sequence, error: MMServeError) -> TokenEvent:
        self.scheduler.counters.requests_failed += 1
        self._end(seq)
        return TokenEvent(seq.id, error=error)

    def _end(self, seq: Sequence) -> None:
        self.scheduler.end(seq)
        self._stages.end(seq.id)
        self._streams.pop(seq.id, None)
        self._sheets.pop(seq.id, None)
        self._grammars.pop(seq.id, None)
