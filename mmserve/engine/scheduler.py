"""Scheduler: decides what each step computes. Pure: no torch, no tensors, no clock.

Plan, execute, update: ``schedule`` returns a frozen plan, the runner executes it, ``update`` notes that it ran. One
token budget a step is shared by decodes, prefill chunks and new sequences, in this order; encoder work has its own.
Waiting sequences hold no slots: they wait for media (``MediaWork``) or for a prefix that another sequence is
prefilling just now, and look again after every step. ``WaitingQueue`` says who is looked at next. What eviction takes
from the device goes to the second tier, and comes back in a step of its own before its sequence computes the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set

import numpy as np

from mmserve.cache.costs import FetchCosts, StepTimes
from mmserve.cache.embeddings import EncoderCache
from mmserve.cache.key import Interner, Spans, common_prefix
from mmserve.cache.pages import SlotPool
from mmserve.cache.radix import RadixCache
from mmserve.cache.tier import SecondTier, SlotCopy
from mmserve.config import EngineConfig
from mmserve.engine.encoding import MediaWork
from mmserve.engine.metrics import Counters
from mmserve.engine.plan import Chunk, SchedulerOutput
from mmserve.engine.queue import WaitingQueue
from mmserve.engine.sequence import Phase, Sequence
from mmserve.types import ContentHash, IntArray, MediaItem, Request

SCORED_TOKENS = 256
"""Most tokens of one sequence in a step where their logits are wanted; each takes a whole row of the vocabulary."""

ADMISSION_WINDOW = 128
"""How many waiting sequences one step looks at, in order; bounds a step's planning time."""


class Scheduler:
    """The state of all requests, the caches' bookkeeping, and the plan of each step.

    ``num_slots`` KV slots; ``tier_slots`` of the second tier, 0 for none; ``row_bytes`` the size of one media row;
    ``eos_ids`` what ``min_tokens`` bans; with ``whole_pictures`` no chunk cuts an item, though it exceed the budget.
    One thread owns it. Every added request stays until ``end`` is called for it.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        num_slots: int,
        row_bytes: int,
        eos_ids: Iterable[int] = (),
        tier_slots: int = 0,
        whole_pictures: bool = False,
    ) -> None:
        self._config = config
        self._whole_pictures = whole_pictures
        self._eos_ids = tuple(eos_ids)
        self.counters = Counters()
        self.pool = SlotPool(num_slots)
        self._interner = Interner()
        self.tree = RadixCache(self.pool, self._interner)
        self.encoder_cache = EncoderCache(config.encoder_cache_bytes)
        self._work = MediaWork(
            self.encoder_cache,
            row_bytes=row_bytes,
            step_work=config.encode_patches,
            window_work=4 * config.encode_patches,
        )
        self._sequences: dict[str, Sequence] = {}
        self._waiting = WaitingQueue()
        self._running: dict[str, Sequence] = {}
        self.tier: SecondTier | None = None
        self._saves: list[SlotCopy] = []
        self._fetches: list[tuple[str, SlotCopy]] = []
        if tier_slots and config.reuse:
            self.tier = SecondTier(tier_slots, self._interner, FetchCosts(config.tier_min_tokens))
            self.tree.on_evict = self._keep
        self._arrivals = 0

    # -- requests -----------------------------------------------------------------------------------------------

    def add(self, request: Request, positions: IntArray, next_position: int) -> Sequence:
        """Take a request whose ``sampling.seed`` is set. ``positions`` is int64 ``(axes, len(prompt))``."""
        if request.id in self._sequences:
            raise ValueError(f"a request with id {request.id!r} is in the engine already")
        numbers = tuple(self._interner.intern(item.content) for item in request.prompt.media)
        self._arrivals += 1
        seq = Sequence(request, numbers, positions, next_position, self._arrivals)
        self._sequences[seq.id] = seq
        match = self.tree.match(seq.key, seq.spans, salt=seq.salt, limit=seq.reusable) if self._config.reuse else None
        self._waiting.add(seq, cached=match is not None and 2 * match.length >= len(seq))
        self.counters.requests_added += 1
        return seq

    def get(self, sequence_id: str) -> Sequence | None:
        return self._sequences.get(sequence_id)

    def end(self, seq: Sequence) -> None:
        """A request is over, however: its prefix goes to the tree, its slots, rows and references are given back."""
        if seq.phase is Phase.ENDED:
            return
        self._leave_device(seq)
        if seq in self._waiting:
            self._waiting.remove(seq)
        del self._sequences[seq.id]
        self._interner.release(seq.numbers)
        seq.phase = Phase.ENDED

    # -- media -------------------------------------------------------------------------------------------------

    def prepared(self, content: ContentHash) -> None:
        """A thread has decoded an item."""
        self.counters.pictures_decoded += 1
        self._work.prepared(content)

    def preparation_failed(self, content: ContentHash) -> list[Sequence]:
        """An item cannot be decoded: returns the sequences that wanted it, to be ended by the caller."""
        victims = [self._sequences[waiter] for waiter in self._work.failed(content)]
        for seq in victims:
            seq.wanted.remove(content)
        return victims

    # -- plan ---------------------------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput:
        encode = self._plan_encoding()
        plan: dict[str, Chunk] = {}
        budget = self._config.step_tokens
        decoding = [seq for seq in self._running.values() if not seq.in_prefill]
        prefilling = [seq for seq in self._running.values() if seq.in_prefill]
        for seq in decoding + prefilling:
            if seq.loan is not None:
                continue
            tokens = self._tokens(seq, budget)
            if tokens and seq.phase is Phase.RUNNING and self._reserve(seq, tokens, plan):
                plan[seq.id] = self._chunk(seq, tokens)
                budget -= tokens
        window = self._waiting.window(ADMISSION_WINDOW)
        for seq in window:
            if not seq.looked_up:  # only now: rows held for the far end of the queue would leave none for its head
                self._look_up(seq)
        self._admit(window, plan, budget)
        self.encoder_cache.shrink()
        chunks = [(self._running[sequence_id], chunk) for sequence_id, chunk in plan.items()]
        return SchedulerOutput(
            save=self._take_saves(),
            fetch=self._take_fetches(),
            forget=self.encoder_cache.take_dropped() + self._work.take_forget(),
            prepare=self._start_media(window),
            encode=encode,
            prefill=tuple(chunk for seq, chunk in chunks if seq.in_prefill),
            decode=tuple(chunk for seq, chunk in chunks if not seq.in_prefill),
        )

    def update(self, plan: SchedulerOutput, damaged: Set[str] = frozenset()) -> None:
        """The plan ran: its tokens' keys and values are in their slots, and whole prefixes go to the tree.

        ``damaged`` are the sequences whose fetch failed; they start over without the second tier's help.
        """
        self.counters.steps += 1
        for sequence_id, _ in plan.fetch:
            seq = self._sequences.get(sequence_id)
            if seq is not None:
                self._fetched(seq, damaged=sequence_id in damaged)
        self.counters.pictures_encoded += len(plan.encode)
        for chunk in plan.decode:
            seq = self._sequences.get(chunk.sequence_id)
            if seq is not None:
                seq.computed = chunk.stop
        for chunk in plan.prefill:
            self.counters.prefilled_tokens += chunk.stop - chunk.start
            seq = self._sequences.get(chunk.sequence_id)
            if seq is not None:
                seq.computed = chunk.stop
                self._share(seq)
                self._release_passed(seq)

    def execution_failed(self, plan: SchedulerOutput) -> list[Sequence]:
        """The plan did not run: ends and returns the sequences that were in it or wait for rows it should have made.

        The second tier is emptied, since what the plan should have saved there was not.
        """
        planned = {chunk.sequence_id for chunk in plan.chunks} | {sequence_id for sequence_id, _ in plan.fetch}
        victims = [s for s in self._sequences.values() if s.id in planned or not s.held.isdisjoint(plan.encode)]
        for seq in victims:
            self.end(seq)
        for content in plan.encode:
            self.encoder_cache.discard(content)
        if self.tier is not None:
            self.tier.tree.flush()
        return victims

    def observe(self, times: StepTimes) -> None:
        """Learn what a step cost, for the second tier's decisions."""
        if self.tier is not None:
            self.tier.costs.observe(times)

    def append(self, seq: Sequence, tokens: Collection[int]) -> None:
        """The token that the sequence's last chunk chose, and those that a grammar puts behind it."""
        self.counters.generated_tokens += len(tokens)
        seq.append(tokens)

    # -- state --------------------------------------------------------------------------------------------------

    @property
    def has_requests(self) -> bool:
        return bool(self._sequences)

    @property
    def has_running(self) -> bool:
        return bool(self._running)

    def flush(self) -> int:
        """Drop everything cached that no request is using; returns the number of tokens dropped from the device."""
        dropped = self.tree.flush()
        if self.tier is not None:
            self.tier.tree.flush()
        self.encoder_cache.shrink(0)
        return dropped

    def gauges(self) -> dict[str, float]:
        return {
            "requests_running": len(self._running),
            "requests_waiting": len(self._waiting),
            "slots_total": self.pool.size,
            "slots_free": self.pool.free_count,
            "slots_cached": self.tree.cached_tokens,
            "slots_evictable": self.tree.evictable_tokens,
            "evicted_tokens": self.tree.evicted_tokens,
            "encoder_cache_bytes": self.encoder_cache.bytes_used,
            "encoder_cache_held_bytes": self.encoder_cache.bytes_held,
            "encoder_cache_pictures": len(self.encoder_cache),
            "evicted_pictures": self.encoder_cache.evicted_pictures,
            "pictures_in_work": len(self._work),
            "tier_slots_total": self.tier.pool.size if self.tier else 0,
            "tier_slots_cached": self.tier.tree.cached_tokens if self.tier else 0,
        }

    def check(self) -> None:
        """Prove that each slot is in exactly one of free, tree, one sequence, and that every count is true."""
        owners = [self.pool.free_slots(), self.tree.check()]
        for seq in self._sequences.values():
            if seq.handle is None:
                assert (seq.computed, seq.reserved) == (0, 0)
                continue
            assert seq.handle.length <= seq.computed <= seq.reserved <= len(seq)
            assert np.array_equal(seq.slots[: seq.handle.length], self.tree.slots(seq.handle))
            owners.append(seq.own_slots())
        everything = np.sort(np.concatenate(owners))
        assert np.array_equal(everything, np.arange(self.pool.size)), "a slot is lost or has two owners"
        self.encoder_cache.check()
        references = dict.fromkeys(self._interner.references(), 0)
        nodes = list(self.tree.nodes())
        if self.tier is not None:
            kept = np.sort(np.concatenate([self.tier.pool.free_slots(), self.tier.tree.check()]))
            assert np.array_equal(kept, np.arange(self.tier.pool.size)), "a slot of the second tier is lost"
            nodes += self.tier.tree.nodes()
        for node in nodes:
            for number in node.spans.numbers:
                references[number] += 1
        waiters: dict[ContentHash, set[str]] = {content: set() for content in self._work.all_waiters()}
        for seq in self._sequences.values():
            for number in seq.numbers:
                references[number] += 1
            for content in seq.wanted:
                waiters[content].add(seq.id)
            assert all(content in self.encoder_cache for content in seq.held)
        assert references == self._interner.references()
        assert waiters == self._work.all_waiters()

    # -- media, inside -----------------------------------------------------------------------------------------

    def _look_up(self, seq: Sequence) -> int:
        """Find the cached prefix, in either tier, and hold or want the media behind it. Returns its length."""
        seq.looked_up = True
        match = self.tree.match(seq.key, seq.spans, salt=seq.salt, limit=seq.reusable) if self._config.reuse else None
        hit = match.length if match else 0
        if self.tier is not None:
            hit = self.tier.reach(seq.reusable_key, seq.spans, salt=seq.salt, hit=hit)
        media = seq.request.prompt.media
        needed = {media[i].content: media[i] for i in seq.media_from(hit)}
        for content in (seq.held | seq.wanted) - needed.keys():
            self._let_go(seq, content)
        for content, item in needed.items():
            if content in seq.held or content in seq.wanted:
                continue
            if content in self.encoder_cache:
                self._hold(seq, content)
                continue
            seq.wanted.add(content)
            if self._work.want(item, seq.id):
                seq.started.add(content)
        return hit

    def _hold(self, seq: Sequence, content: ContentHash) -> None:
        self.encoder_cache.hold(content)
        seq.held.add(content)

    def _let_go(self, seq: Sequence, content: ContentHash) -> None:
        if content in seq.held:
            seq.held.remove(content)
            self.encoder_cache.release(content)
        else:
            seq.wanted.remove(content)
            self._work.unwant(content, seq.id)

    def _release_passed(self, seq: Sequence) -> None:
        """Let go of rows that the sequence's keys and values have taken up."""
        if seq.held:
            media = seq.request.prompt.media
            ahead = {media[i].content for i in seq.media_from(seq.computed)}
            for content in seq.held - ahead:
                self._let_go(seq, content)

    def _plan_encoding(self) -> tuple[ContentHash, ...]:
        encode = self._work.take_encode()
        for content, waiters in encode.items():
            for waiter in waiters:
                seq = self._sequences[waiter]
                seq.wanted.remove(content)
                self._hold(seq, content)
        return tuple(encode)

    def _start_media(self, window: Iterable[Sequence]) -> tuple[MediaItem, ...]:
        wanting = [seq for seq in window if seq.wanted]
        return self._work.start(
            [content for seq in wanting[:1] for content in seq.wanted_in_order()],
            (content for seq in wanting[1:] for content in seq.wanted_in_order()),
        )

    # -- slots, inside ------------------------------------------------------------------------------------------

    def _tokens(self, seq: Sequence, budget: int) -> int:
        """How many of the sequence's next tokens to compute where ``budget`` are left in the step."""
        tokens = min(seq.pending, budget, SCORED_TOKENS if seq.request.score_from is not None else budget)
        return seq.spans.uncut(seq.computed, tokens) if self._whole_pictures and tokens > 0 else max(0, tokens)

    def _chunk(self, seq: Sequence, tokens: int) -> Chunk:
        sampling = seq.request.sampling
        banned: tuple[int, ...] = ()
        if len(seq.outputs) < sampling.min_tokens:
            # Under a grammar a stop id is no end unless the grammar accepts, and may be all that is allowed.
            banned = self._eos_ids + (() if seq.request.constraint is not None else sampling.stop_token_ids)
        return seq.chunk(tokens, banned)

    def _reserve(self, seq: Sequence, tokens: int, plan: dict[str, Chunk]) -> bool:
        """Slots for the next tokens: free ones, then evicted ones, then those of the youngest running sequence."""
        while True:
            missing = seq.computed + tokens - seq.reserved
            if missing > self.pool.free_count:
                self.tree.evict(missing - self.pool.free_count)
            if missing <= self.pool.free_count:
                seq.reserve(self.pool.alloc(missing))
                return True
            youngest = max(self._running.values(), key=lambda other: other.arrival)
            self._preempt(youngest)
            plan.pop(youngest.id, None)
            if youngest is seq:
                return False

    def _preempt(self, seq: Sequence) -> None:
        """Back to the front of the queue; what it computed stays in the tree until it is evicted."""
        self.counters.preemptions += 1
        self._leave_device(seq)
        seq.phase = Phase.WAITING
        self._waiting.give_back(seq)
        self._look_up(seq)

    def _leave_device(self, seq: Sequence) -> None:
        for content in seq.held | seq.wanted:
            self._let_go(seq, content)
        if seq.loan is not None:
            assert self.tier is not None
            self.tier.give_back(seq.loan)
            self._fetches = [fetch for fetch in self._fetches if fetch[0] != seq.id]
            seq.loan = None
        if seq.handle is not None:
            self._share(seq)
            self.pool.free(seq.own_slots())
            self.tree.release(seq.handle)
            seq.drop_slots()
        self._running.pop(seq.id, None)

    def _share(self, seq: Sequence) -> None:
        if self._config.reuse and seq.handle is not None and seq.computed > seq.handle.length:
            seq.adopt(self.tree.extend(seq.handle, seq.key, seq.slots[: seq.computed], seq.spans))

    # -- admission, inside --------------------------------------------------------------------------------------

    def _admit(self, window: Iterable[Sequence], plan: dict[str, Chunk], budget: int) -> None:
        """Start waiting sequences, in the window's order, while tokens, places and slots are left.

        One whose media or prefix are being made is passed over, and the sweep stays with it; one that lacks slots
        ends the search, so that smaller ones behind it cannot starve it.
        """
        passed_over = False
        for seq in window:
            if budget <= 0 or len(self._running) >= self._config.max_running:
                return
            if seq.wanted or self._prefix_is_coming(seq):
                passed_over = True
                continue
            hit = self._look_up(seq)
            if seq.wanted or self._would_repeat(seq, hit):
                passed_over = True
                continue
            if not self._start(seq, advance=not passed_over):
                return
            tokens = self._tokens(seq, budget)
            if seq.loan is None and self._reserve(seq, tokens, plan):
                plan[seq.id] = self._chunk(seq, tokens)
                budget -= tokens

    def _prefix_is_coming(self, seq: Sequence) -> bool:
        if seq.blocked_by is None:
            return False
        other, shared = seq.blocked_by
        if other.phase is Phase.RUNNING and other.computed < shared:
            return True
        seq.blocked_by = None
        return False

    def _would_repeat(self, seq: Sequence, hit: int) -> bool:
        """Whether a running sequence is computing a long enough prefix of this one just now."""
        if not self._config.reuse:
            return False
        for other in self._running.values():
            if other.salt != seq.salt or not other.in_prefill:
                continue
            shared = seq.spans.clamp(common_prefix(seq.key[: seq.reusable], other.key))
            if shared - max(hit, other.computed) > 0 and shared - hit >= self._config.share_threshold:
                seq.blocked_by = (other, shared)
                return True
        return False

    def _start(self, seq: Sequence, *, advance: bool) -> bool:
        """Give a waiting sequence its cached prefix and a place among the running, if its prompt's slots can be had."""
        match = self.tree.match(seq.key, seq.spans, salt=seq.salt, limit=seq.reusable) if self._config.reuse else None
        handle = self.tree.acquire(match, salt=seq.salt)
        wanted = len(seq) - handle.length + len(self._running)
        if self._running and wanted > self.pool.free_count + self.tree.evictable_tokens:
            self.tree.release(handle)
            return False
        seq.handle = handle
        seq.adopt(self.tree.slots(handle))
        seq.phase = Phase.RUNNING
        self._waiting.remove(seq, advance=advance)
        self._waiting.count_admission()
        self._running[seq.id] = seq
        self._borrow(seq)
        if seq.cached_tokens is None and seq.loan is None:
            self._count_reuse(seq)
        return True

    def _count_reuse(self, seq: Sequence) -> None:
        # Tokens that a grammar forced before the first was chosen may be cached as well; they are not the prompt's.
        prompt, hit = seq.request.prompt, min(seq.computed, seq.prompt_length)
        seq.cached_tokens = hit
        seq.cached_pictures = sum(picture.content not in seq.started for picture in prompt.pictures)
        from_media = sum(max(0, min(r.end, hit) - r.start) for r in prompt.ranges)
        from_system = min(hit, prompt.system_tokens)
        counters = self.counters
        counters.prompt_tokens += seq.prompt_length
        counters.cached_tokens += hit
        counters.cached_picture_tokens += from_media
        counters.cached_system_tokens += from_system
        counters.cached_history_tokens += hit - from_media - from_system
        counters.pictures += len(prompt.media)
        counters.pictures_reused += sum(item.content not in seq.started for item in prompt.media)

    # -- second tier, inside ------------------------------------------------------------------------------------

    def _keep(self, key: IntArray, slots: IntArray, spans: Spans, salt: str) -> None:
        assert self.tier is not None
        copy = self.tier.keep(key, slots, spans, salt)
        if copy is not None:
            self._saves.append(copy)
            self.counters.tier_saved_tokens += len(copy.source)

    def _borrow(self, seq: Sequence) -> None:
        """Plan to fetch what the second tier has behind the device's prefix, where slots for it can be had."""
        if self.tier is None or seq.handle is None:
            return
        loan = self.tier.borrow(seq.reusable_key, seq.spans, salt=seq.salt, hit=seq.handle.length)
        if loan is None:
            return
        missing = len(loan.slots) - self.pool.free_count
        if missing > 0:
            self.tree.evict(missing)
        target = self.pool.alloc(len(loan.slots))  # can be had, or the sequence had not been started
        seq.reserve(target)
        seq.loan = loan
        self._fetches.append((seq.id, SlotCopy(loan.slots, target)))

    def _fetched(self, seq: Sequence, *, damaged: bool) -> None:
        loan, tier = seq.loan, self.tier
        assert loan is not None
        assert tier is not None
        if damaged:
            self.counters.tier_damaged += 1
            self._preempt(seq)  # its media may be needed after all; the queue sorts that out
            tier.tree.flush()
            return
        seq.loan = None
        tier.give_back(loan)
        seq.computed = loan.stop
        self.counters.tier_fetched_tokens += len(loan.slots)
        self._share(seq)
        if seq.cached_tokens is None:
            self._count_reuse(seq)

    def _take_saves(self) -> tuple[SlotCopy, ...]:
        saves, self._saves = tuple(self._saves), []
        return saves

    def _take_fetches(self) -> tuple[tuple[str, SlotCopy], ...]:
        fetches, self._fetches = tuple(self._fetches), []
        return fetches
