"""What the HTTP service needs from the rest of the house, as one frozen value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mmserve.config import Limits
from mmserve.engine.client import EngineClient
from mmserve.errors import ModelNotFound
from mmserve.types import Message, Prompt, SamplingParams


class PromptBuilder(Protocol):
    """Turns messages into token ids; CPU work of 0.3 ms and more. Raises typed errors (``mmserve.errors``)."""

    def build(
        self, messages: Sequence[Message], *, cache_salt: str = "", add_generation_prompt: bool = True
    ) -> Prompt: ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as people meet it.

    ``description`` is one sentence. ``card`` says what the model can and cannot do, in Markdown; the page shows its
    headings, lists, tables, code and paragraphs. ``created`` is a Unix time.
    """

    name: str
    description: str = ""
    card: str = ""
    created: int = 0
    aliases: tuple[str, ...] = ("default",)


@dataclass(frozen=True, slots=True)
class Service:
    """One served model behind HTTP. The caller owns ``engine`` and closes it.

    ``sampling`` is what a request that says nothing gets. ``max_model_len`` is in tokens, prompt and answer together.
    ``examples`` is a folder with ``examples.json`` and the pictures it names, or ``None``.
    An upload that stands still for ``upload_idle_seconds`` is refused.
    """

    model: ServedModel
    prompts: PromptBuilder
    engine: EngineClient
    max_model_len: int
    limits: Limits = field(default_factory=Limits)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    examples: Path | None = None
    upload_idle_seconds: float = 30.0

    def find_model(self, name: str | None) -> ServedModel:
        """The model called ``name`` (``None``: the only one). Raises ``ModelNotFound``."""
        if name is None or name == self.model.name or name in self.model.aliases:
            return self.model
        also = "".join(f', also as "{alias}"' for alias in self.model.aliases)
        raise ModelNotFound(
            f'no model named "{name}" is served here; this server has "{self.model.name}"{also}', param="model"
        )
