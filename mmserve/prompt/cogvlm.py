"""CogVLM's and CogVLM2's prompts: the picture in front, then questions and answers as plain text.

Published checkpoints have no chat template of their own (CogVLM2's tokenizer carries Llama 3's, which it was not
trained with); their ``config.json`` names one of three forms, which are written down here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmserve.checkpoint import Checkpoint
from mmserve.errors import ConfigError
from mmserve.prompt.layout import Layout
from mmserve.types import IntArray, Prompt
from vision.cog import cog_geometry, is_second

MARK = "<|picture|>"

_UNKNOWN = 0
_RESERVED = 128_002
"""What stands at the rows of pictures: ``<unk>`` of Llama 2's vocabulary, a reserved token of Llama 3's."""

_SAID = (
    "{%- macro said(content) -%}{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
_PICTURES = (
    "{%- for message in messages if message['content'] is not string -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}" + MARK + "{%- endfor -%}{%- endfor -%}"
)
_TURNS = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}"
    "{{ raise_exception('CogVLM takes no system message: put the instruction into the question') }}{%- endif -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('questions and answers must take turns, a question first') }}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{ 'Question: ' + said(message['content']) }}"
    "{%- if not loop.last or add_generation_prompt -%}{{ ' ANSWER' }}{%- endif -%}"
    "{%- else -%}{{ ' ' + said(message['content']) + '\n' }}"
    "{%- if loop.last and add_generation_prompt -%}"
    "{{ raise_exception('there is no question to answer: end with a user message') }}{%- endif -%}"
    "{%- endif -%}{%- endfor -%}"
)
_ALONE = (
    "{%- if messages | length != 1 or messages[0]['role'] != 'user' -%}"
    "{{ raise_exception('this CogVLM goes on from one text: send a single user message') }}{%- endif -%}"
    "{{ said(messages[0]['content']) }}"
)

TEMPLATES: Mapping[str, str] = {
    "chat": _SAID + _PICTURES + _TURNS.replace("ANSWER", "Answer:"),
    "vqa": _SAID + _PICTURES + _TURNS.replace("ANSWER", "Short answer:"),
    "base": _SAID + _PICTURES + _ALONE,
}
"""Jinja templates by ``config.json``'s ``template_version``."""


def cogvlm(checkpoint: Checkpoint) -> Layout:
    """One picture a conversation, in front of its text. Raises ``ConfigError``."""
    version = str(checkpoint.config.get("template_version", "chat"))
    if version not in TEMPLATES:
        raise ConfigError(f"config.json's template_version must be {', '.join(TEMPLATES)}, not {version!r}")
    given = checkpoint.config.get("pad_token_id")
    pad_id = given if isinstance(given, int) else _RESERVED if is_second(checkpoint.config) else _UNKNOWN
    return Layout(
        cog_geometry(checkpoint.config),
        pad_id,
        mark=MARK,
        positions=cog_positions,
        opens=True,
        template=TEMPLATES[version],
        most_pictures=1,
        apart=True,
    )


def cog_positions(prompt: Prompt) -> tuple[IntArray, int]:
    """Every token counts, but those of a picture between its first and last row share one position: int64 ``(1, n)``,
    and the next token's."""
    steps = np.ones(len(prompt), dtype=np.int64)
    for start, end, _ in prompt.ranges:
        steps[start + 2 : end - 1] = 0
    positions = steps.cumsum() - 1
    return positions[None], int(positions[-1]) + 1
