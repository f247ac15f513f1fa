"""Grammar masks: filled in threads while the model computes, for the rows that choose a token under a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from llguidance import LLExecutor, LLMatcher
from torch import Tensor


class MaskFill:
    """A step's masks on their way. ``wait`` must be called before any of the matchers is used again."""

    def __init__(self, sequence_ids: Sequence[str], future: Future[Tensor]) -> None:
        self.sequence_ids = sequence_ids
        self._future = future

    def wait(self) -> Tensor:
        """Masks int32 ``(N, words)``, overwritten by the next step's."""
        return self._future.result()

    def settle(self) -> None:
        """Wait until no matcher is in use any more, however the filling ended."""
        wait([self._future])


class MaskFiller:
    """Fills masks of ``words`` 32-bit words, those of one step in parallel on ``threads`` threads.

    The buffer is pinned where there is a GPU, so that the copy to it need not wait. A matcher in error gets a mask that
    is worth nothing; its state says so.
    """

    def __init__(self, words: int, threads: int) -> None:
        self._words = words
        self._executor = LLExecutor(threads)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mmserve-masks")
        self._buffer = torch.zeros((0, words), dtype=torch.int32)

    def start(self, matchers: dict[str, LLMatcher]) -> MaskFill | None:
        """Fill a mask for each of ``matchers``, by sequence; ``None`` where there are none."""
        if not matchers:
            return None
        if len(matchers) > len(self._buffer):
            rows = max(16, 2 * len(matchers))
            self._buffer = torch.zeros((rows, self._words), dtype=torch.int32, pin_memory=torch.cuda.is_available())
        masks = self._buffer[: len(matchers)]
        work = [(matcher, row) for row, matcher in enumerate(matchers.values())]
        return MaskFill(list(matchers), self._thread.submit(self._fill, work, masks))

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    def _fill(self, work: list[tuple[LLMatcher, int]], masks: Tensor) -> Tensor:
        self._executor.unsafe_compute_mask_ptr(work, masks.data_ptr(), 4 * self._words, len(masks))
        return masks
