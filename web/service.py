"""What the HTTP service needs from the rest of the house, as one frozen value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from mmserve.config import Limits
from mmserve.engine.client import EngineClient
from mmserve.errors import InvalidField, ModelNotFound
from mmserve.sampling import SamplingParams
from mmserve.types import MediaKind, Message, Prompt
from web.operations.metrics import ServiceMetrics
from web.pictures import PictureShelf
from web.safety import Safety

if TYPE_CHECKING:
    from mmserve.grammar.spec import Constraint
    from web.operations.tracing import Tracing

Judge: TypeAlias = "Callable[[Constraint, str], bool | None]"
"""Whether a finished text keeps a constraint; ``None`` where it cannot tell. May take milliseconds."""


def judge_text(constraint: Constraint, text: str) -> bool | None:
    """By ``mmserve.grammar.judge``, which takes no part in enforcing."""
    from mmserve.grammar.judge import judge  # brings the jsonschema library, which few requests need

    return judge(constraint, text)


class PromptBuilder(Protocol):
    """Turns messages into token ids; CPU work of 0.3 ms and more. Raises typed errors (``mmserve.errors``)."""

    def build(
        self, messages: Sequence[Message], *, cache_salt: str = "", add_generation_prompt: bool = True
    ) -> Prompt: ...

    def append_text(self, prompt: Prompt, text: str, *, end: bool = False) -> Prompt:
        """``prompt`` with a piece of answer, tokenised on its own as text; ``end`` adds the end of the turn."""

    def append_choices(
        self, prompt: Prompt, opening: str, choices: Sequence[str], *, end: bool = False
    ) -> tuple[list[Prompt], int]:
        """``prompt``, ``opening`` and each of ``choices``; and the first position to score in all of them."""

    def build_text(self, text: str, pictures: Sequence[bytes], *, cache_salt: str = "") -> Prompt:
        """The prompt that ``text`` is as it stands, its special tokens special tokens; errors name ``text`` or
        ``images[k]``."""

    def build_ids(self, ids: Sequence[int], pictures: Sequence[bytes], *, cache_salt: str = "") -> Prompt:
        """The prompt of these token ids; errors name ``input_ids`` or ``images[k]``."""

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; with ``special``, special tokens are spelled out."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; nothing for an id that belongs to no token."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as people meet it.

    ``description`` is one sentence. ``card`` says what the model can and cannot do, in Markdown; the page shows its
    headings, lists, tables, code and paragraphs. ``created`` is a Unix time. ``family`` is the architecture's name,
    for example ``"qwen2_vl"``. ``media`` are the kinds that it takes.
    """

    name: str
    description: str = ""
    card: str = ""
    created: int = 0
    aliases: tuple[str, ...] = ("default",)
    family: str = ""
    media: tuple[MediaKind, ...] = ("image",)


@dataclass(frozen=True, slots=True)
class Service:
    """One served model behind HTTP. The caller owns ``engine`` and closes it.

    ``sampling`` is what a request that says nothing gets. ``max_model_len`` is in tokens, prompt and answer together.
    ``examples`` is a folder with ``examples.json`` and the pictures it names, or ``None``.
    An upload that stands still for ``upload_idle_seconds`` is refused. ``judge`` is asked about answers whose
    constraint was not enforced exactly. ``metrics`` is what ``/metrics`` shows; requests are timed where ``engine``
    is an ``ObservedEngine`` over it. ``safety`` says who may use it and what it may reach.
    """

    model: ServedModel
    prompts: PromptBuilder
    engine: EngineClient
    max_model_len: int
    limits: Limits = field(default_factory=Limits)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    examples: Path | None = None
    upload_idle_seconds: float = 30.0
    judge: Judge = judge_text
    metrics: ServiceMetrics = field(default_factory=ServiceMetrics, repr=False, compare=False)
    tracing: Tracing | None = field(default=None, repr=False, compare=False)
    safety: Safety = field(default_factory=Safety)
    shelf: PictureShelf = field(init=False, repr=False, compare=False)
    """The pictures that callers sent once; a copy with other settings has an empty one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shelf", PictureShelf(self.limits))

    def find_model(self, name: str | None) -> ServedModel:
        """The model called ``name`` (``None``: the only one). Raises ``ModelNotFound``."""
        if name is None or name == self.model.name or name in self.model.aliases:
            return self.model
        also = "".join(f', also as "{alias}"' for alias in self.model.aliases)
        raise ModelNotFound(
            f'no model named "{name[:100]}" is served here; this server has "{self.model.name}"{also}', param="model"
        )

    def check_bias(self, sampling: SamplingParams) -> None:
        """Raises ``InvalidField`` for a biased id that belongs to no token."""
        for id_, _ in sampling.logit_bias:
            if not self.prompts.token_bytes(id_):
                raise InvalidField(f"logit_bias has {id_}, which is no token of {self.model.name}", param="logit_bias")
