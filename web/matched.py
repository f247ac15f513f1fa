"""What ended an answer."""

from __future__ import annotations

from mmserve.types import SamplingParams
from web.generation import Tally
from web.service import PromptBuilder


def matched_stop(tally: Tally, sampling: SamplingParams, prompts: PromptBuilder) -> str | int | None:
    """The stop string, or the token, that ended a finished answer; ``None`` where its constraint or its length did.

    Events do not say it, but the tokens do: they go on behind the text where a stop string was cut off.
    """
    if tally.finish_reason != "stop" or not tally.token_ids:
        return None
    special = not sampling.skip_special_tokens
    whole = prompts.decode(tally.token_ids, special=special)
    rest = whole[max(0, whole.find(tally.text)) + len(tally.text) :]  # an answer's first space may not be in its text
    stops = [stop for stop in sampling.stop if rest.startswith(stop)]
    if stops:
        return max(stops, key=len)
    last = tally.token_ids[-1]
    is_special = prompts.decode([last]) == "" != prompts.decode([last], special=True)
    return last if is_special or last in sampling.stop_token_ids else None
