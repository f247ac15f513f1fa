"""Grammar masks: one bit a token, applied to the logits of the rows that have one."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_token_bitmask(logits: Tensor, bits: Tensor, rows: Tensor) -> Tensor:
    """Set the logits of tokens that are not allowed to minus infinity, in place. Returns ``logits``.

    ``logits`` is float ``(B, V)``; ``bits`` int32 ``(N, ceil(V / 32))``, in which bit ``v % 32`` of word ``v // 32``
    says that token ``v`` is allowed; ``rows`` int64 ``(N,)``, distinct, are the rows of ``logits`` they are for. All on
    one device.
    """
    shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = (bits.unsqueeze(-1) >> shifts).bitwise_and_(1).flatten(1)[:, : logits.shape[1]].bool()
    chosen = logits.index_select(0, rows).masked_fill_(~allowed, float("-inf"))
    return logits.index_copy_(0, rows, chosen)
