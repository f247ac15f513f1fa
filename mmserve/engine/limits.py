"""What of a request can fit; no torch, so that the HTTP side and the engine share it."""

from __future__ import annotations

from mmserve.errors import PromptTooLong
from mmserve.types import Request


def resolve_limits(request: Request, max_model_len: int) -> Request:
    """``request`` with ``max_tokens`` set, by default to what is left of the context.

    Raises ``PromptTooLong`` where prompt and answer cannot fit ``max_model_len`` tokens.
    """
    prompt, sampling = len(request.prompt), request.sampling
    if prompt >= max_model_len:
        raise PromptTooLong(
            f"the prompt has {prompt} tokens, {request.prompt.picture_tokens} of them for pictures, but this model "
            f"takes {max_model_len} including its answer: shorten the text, or send fewer or smaller pictures"
        )
    if sampling.max_tokens is None:
        sampling = sampling.replace(max_tokens=max_model_len - prompt)
    elif prompt + sampling.max_tokens > max_model_len:
        raise PromptTooLong(
            f"the prompt's {prompt} tokens and max_tokens={sampling.max_tokens} exceed this model's context of "
            f"{max_model_len} tokens. Lower max_tokens to at most {max_model_len - prompt} or shorten the prompt.",
            param="max_tokens",
        )
    return Request(request.id, request.prompt, sampling, request.cache_salt)
