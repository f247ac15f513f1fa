"""What of a request can fit; no torch, so that the HTTP side and the engine share it."""

from __future__ import annotations

import dataclasses

from mmserve.errors import BudgetTooSmall, InvalidField, PromptTooLong
from mmserve.types import Request


def resolve_limits(request: Request, max_model_len: int) -> Request:
    """``request`` with ``max_tokens`` set, by default to what is left of the context.

    Raises ``PromptTooLong`` where prompt and answer cannot fit ``max_model_len`` tokens, and ``InvalidField`` where
    tokens are to be scored that the prompt does not have.
    """
    prompt, sampling = len(request.prompt), request.sampling
    answer = 0 if request.score_from is not None else 1
    if prompt + answer > max_model_len:
        raise PromptTooLong(
            f"the prompt has {prompt} tokens, {request.prompt.picture_tokens} of them for pictures, but this model's "
            f"maximum context length is {max_model_len}, its answer included: shorten the text, or send fewer or "
            "smaller pictures"
        )
    if request.score_from is not None:
        _check_score(request, request.score_from)
        return request
    if sampling.max_tokens is None:
        sampling = sampling.replace(max_tokens=max_model_len - prompt)
    elif prompt + sampling.max_tokens > max_model_len:
        raise PromptTooLong(
            f"the prompt's {prompt} tokens and max_tokens={sampling.max_tokens} are more than fit: this model's "
            f"maximum context length is {max_model_len} tokens. Lower max_tokens to at most "
            f"{max_model_len - prompt} or shorten the prompt.",
            param="max_tokens",
        )
    return dataclasses.replace(request, sampling=sampling)


def check_budget(request: Request, shortest: int) -> None:
    """Raises ``BudgetTooSmall`` where ``max_tokens`` is less than the ``shortest`` whole answer."""
    budget = request.sampling.max_tokens
    if budget is not None and budget < shortest:
        raise BudgetTooSmall(
            f"no whole answer of this shape fits max_tokens={budget}; the shortest known takes {shortest} tokens",
            param="max_tokens",
        )


def _check_score(request: Request, first: int) -> None:
    if request.constraint is not None:
        raise InvalidField("a prompt that is scored has no answer to constrain", param="score_from")
    if not 1 <= first < len(request.prompt):
        raise InvalidField(
            f"score_from must be between 1 and {len(request.prompt) - 1}, the prompt's last token, got {first}",
            param="score_from",
        )
