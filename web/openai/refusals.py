"""Fields of OpenAI's that are refused, or mean nothing here: a table of the values that ask for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmserve.errors import InvalidField

EMPTY: tuple[object, ...] = (None, False, "", [], {})


@dataclass(frozen=True, slots=True)
class Refusal:
    """``harmless`` are the values that ask for nothing; ``hint`` says what to do instead."""

    harmless: tuple[object, ...] = EMPTY
    hint: str = "leave it out"


def refuse(fields: Mapping[str, Any], table: Mapping[str, Refusal]) -> None:
    """Raises ``InvalidField`` for a field whose silent loss would change the answer, or mislead about it."""
    for name, value in fields.items():
        refusal = table.get(name)
        # 0 == False, but a number asks for something where a flag does not.
        if refusal is not None and not any(value == each and type(value) is type(each) for each in refusal.harmless):
            raise InvalidField(f"{name} is not supported here: {refusal.hint}", param=name)


SHARED: Mapping[str, Refusal] = {
    "service_tier": Refusal((*EMPTY, "auto", "default"), 'there is one tier; leave it out, or "auto" or "default"'),
    "verbosity": Refusal((*EMPTY, "medium"), "say in the prompt how long the answer should be"),
    "prompt": Refusal(hint="prompts are not kept here; send the messages themselves"),
}

_OF_PEERS: Mapping[str, Refusal] = {
    "stop_regex": Refusal(hint="send stop strings, or a regex that the whole answer keeps"),
    "allowed_token_ids": Refusal(hint="send choices, a regex or a logit_bias"),
    "prompt_logprobs": Refusal(hint="POST /v1/completions with echo and logprobs scores a prompt"),
    "truncate_prompt_tokens": Refusal(hint="nothing of the prompt is dropped; shorten it yourself"),
    **dict.fromkeys(
        (
            *("bad_words", "custom_logit_processor", "custom_params", "guided_whitespace_pattern", "lora_path"),
            *("include_stop_str_in_output", "logits_processors", "no_stop_trim", "prompt_embeds", "use_beam_search"),
        ),
        Refusal(),
    ),
}
"""Fields of SGLang's and vLLM's servers that their OpenAI routes take."""

CHAT: Mapping[str, Refusal] = {
    **SHARED,
    **_OF_PEERS,
    "functions": Refusal(hint="send tools, which took its place"),
    "function_call": Refusal((*EMPTY, "none", "auto"), "send tool_choice, which took its place"),
    "modalities": Refusal((*EMPTY, ["text"]), "answers are text; leave it out"),
    "best_of": Refusal((*EMPTY, 1), "ask for n answers with logprobs and choose"),
    "audio": Refusal(hint="answers are text; leave it out"),
    "web_search_options": Refusal(hint="nothing is looked up; leave it out"),
    "reasoning_effort": Refusal((*EMPTY, "none"), "how long the model reasons cannot be set; leave it out"),
    "store": Refusal(hint="chat completions are not kept; POST /v1/responses keeps its answers"),
    "moderation": Refusal(),
    "chat_template": Refusal(),
}

COMPLETIONS: Mapping[str, Refusal] = {
    **_OF_PEERS,
    "suffix": Refusal(hint="text cannot be put in between; leave it out"),
    "best_of": Refusal((*EMPTY, 1), "ask for n answers with logprobs and choose"),
}

RESPONSES: Mapping[str, Refusal] = {
    **SHARED,
    "background": Refusal(hint="ask with stream, or wait for the answer"),
    "conversation": Refusal(hint="send previous_response_id, or the whole conversation as input"),
    "truncation": Refusal((*EMPTY, "disabled"), "nothing of the input is dropped; shorten it yourself"),
    "context_management": Refusal(hint="nothing of the input is dropped; shorten it yourself"),
    "moderation": Refusal(),
}
"""Beyond these the Responses API refuses values inside ``text``, ``reasoning``, ``include`` and ``tools``."""
