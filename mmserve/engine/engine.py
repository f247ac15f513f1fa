"""Engine: the loop's body. Plan, execute, update, and turn what came out into events.

Single threaded but for the pool that decodes pictures; ``mmserve.engine.local`` gives it a thread and asyncio callers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Protocol

from mmserve.config import EngineConfig
from mmserve.engine.limits import resolve_limits
from mmserve.engine.output import OutputStream
from mmserve.engine.plan import SchedulerOutput
from mmserve.engine.runner import Pixels, RunnerOutput
from mmserve.engine.scheduler import Scheduler
from mmserve.engine.sequence import Sequence
from mmserve.errors import MMServeError
from mmserve.types import ContentHash, IntArray, Picture, Prompt, Request, TokenEvent

log = logging.getLogger(__name__)


class StepRunner(Protocol):
    """What the loop needs of a runner."""

    @property
    def num_slots(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...
    @property
    def tier_slots(self) -> int: ...
    def prepare(self, picture: Picture) -> Pixels: ...
    def put_pixels(self, content: ContentHash, pixels: Pixels) -> None: ...
    def execute(self, plan: SchedulerOutput) -> RunnerOutput: ...
    def close(self) -> None: ...


class Positions(Protocol):
    """A family's position ids: int64 ``(axes, len(prompt))`` and the position of the first generated token."""

    def __call__(self, prompt: Prompt) -> tuple[IntArray, int]: ...


class Engine:
    """Requests in, events out, one step at a time.

    ``idle`` says that the last step found nothing to do: the next can do nothing either before a request comes or
    goes or a picture is ready. ``on_wake`` is called from a decoding thread when one is, so that a sleeping loop
    goes on.
    """

    def __init__(
        self,
        runner: StepRunner,
        config: EngineConfig,
        *,
        positions: Positions,
        new_stream: Callable[[Sequence], OutputStream],
        eos_ids: tuple[int, ...],
        max_model_len: int,
        on_wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._runner = runner
        self._config = config
        self._positions = positions
        self._new_stream = new_stream
        self.max_model_len = min(max_model_len, runner.num_slots)
        self.scheduler = Scheduler(
            config,
            num_slots=runner.num_slots,
            row_bytes=runner.row_bytes,
            eos_ids=eos_ids,
            tier_slots=runner.tier_slots,
        )
        self._streams: dict[str, OutputStream] = {}
        self._threads = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="mmserve-decode")
        self._prepared: SimpleQueue[tuple[ContentHash, Future[Pixels]]] = SimpleQueue()
        self.on_wake = on_wake
        self.idle = True

    def resolve(self, request: Request) -> Request:
        """The request with its limits filled in. Raises ``PromptTooLong`` when it can never fit. Thread safe."""
        return resolve_limits(request, self.max_model_len)

    def add(self, request: Request) -> None:
        """Take a resolved request whose seed is set."""
        positions, next_position = self._positions(request.prompt)
        seq = self.scheduler.add(request, positions, next_position)
        try:
            self._streams[seq.id] = self._new_stream(seq)
        except Exception:
            self.scheduler.end(seq)
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

    def step(self, *, wait: bool = False) -> list[TokenEvent]:
        """One turn of the loop. ``wait`` blocks for a picture's decoding when nothing else can be done."""
        events = self._collect_pictures(wait=False)
        plan = self.scheduler.schedule()
        for picture in plan.prepare:
            self._prepare(picture)
        self.idle = not (plan.for_device or plan.prepare or events or self.scheduler.has_running)
        if plan.for_device:
            events += self._run(plan)
        elif wait and not events and self.scheduler.has_requests:
            events += self._collect_pictures(wait=True)
        if self._config.check_invariants:
            self.scheduler.check()
        return events

    def flush(self) -> int:
        """Empty the caches of what no request is using; returns the number of tokens dropped."""
        return self.scheduler.flush()

    def stats(self) -> dict[str, float]:
        return self.scheduler.counters.snapshot() | self.scheduler.gauges()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._runner.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _run(self, plan: SchedulerOutput) -> list[TokenEvent]:
        try:
            output = self._runner.execute(plan)
        except Exception as error:
            log.exception("a step failed; the requests in it are ended")
            failure = MMServeError(f"the engine failed while computing this request: {type(error).__name__}")
            return [self._fail(seq, failure) for seq in self.scheduler.execution_failed(plan)]
        self.scheduler.update(plan, output.damaged)
        if output.times is not None:
            self.scheduler.observe(output.times)
        events = []
        for sequence_id, token in output.tokens.items():
            seq = self.scheduler.get(sequence_id)
            assert seq is not None
            self.scheduler.append(seq, token)
            event = self._streams[sequence_id].push(token, output.logprobs[sequence_id])
            if event.last:
                self.scheduler.counters.requests_finished += 1
                self._end(seq)
            events.append(event)
        return events

    def _prepare(self, picture: Picture) -> None:
        def done(future: Future[Pixels]) -> None:
            self._prepared.put((picture.content, future))
            self.on_wake()

        self._threads.submit(self._runner.prepare, picture).add_done_callback(done)

    def _collect_pictures(self, *, wait: bool) -> list[TokenEvent]:
        events: list[TokenEvent] = []
        while True:
            try:
                content, future = self._prepared.get(block=wait)
            except Empty:
                return events
            wait = False
            if future.cancelled():
                continue
            error = future.exception()
            if error is None:
                self._runner.put_pixels(content, future.result())
                self.scheduler.prepared(content)
                continue
            if not isinstance(error, MMServeError):
                log.error("a picture could not be prepared", exc_info=error)
                error = MMServeError(f"the engine failed while decoding a picture: {type(error).__name__}")
            events += [self._fail(seq, error) for seq in self.scheduler.preparation_failed(content)]

    def _fail(self, seq: Sequence, error: MMServeError) -> TokenEvent:
        self.scheduler.counters.requests_failed += 1
        self._end(seq)
        return TokenEvent(seq.id, error=error)

    def _end(self, seq: Sequence) -> None:
        self.scheduler.end(seq)
        self._streams.pop(seq.id, None)
