"""The values that travel between the layers; a leaf: no torch, nothing of mmserve but errors.

A request as data: ``Message``\\ s with ``ImagePart``\\ s and their like -> ``Prompt`` (token ids, media items and
where their rows go) -> ``Request`` (frozen) -> ``TokenEvent``\\ s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, NewType, Protocol

import numpy as np
import numpy.typing as npt

from mmserve.errors import InvalidField, MMServeError
from mmserve.sampling import SamplingParams

if TYPE_CHECKING:
    from mmserve.grammar.spec import Constraint

ContentHash = NewType("ContentHash", bytes)
"""Full-width digest of a media item's identity (see ``vision.identity``)."""

MediaKind = Literal["image", "video", "audio"]

MEDIA_KINDS: tuple[MediaKind, ...] = ("image", "video", "audio")

IntArray = npt.NDArray[np.int64]


class Grid(NamedTuple):
    """A picture's size in vision patches, before spatial merging: time (or tiles), height, width."""

    t: int
    h: int
    w: int


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a picture's header says, read without decoding it.

    ``width`` and ``height`` are in pixels *as shown*, after the EXIF ``orientation`` (1..8) has been applied.
    ``format`` is Pillow's name, for example ``"JPEG"``.
    """

    format: str
    width: int
    height: int
    orientation: int = 1


DETAIL_LEVELS = ("auto", "low", "high")


@dataclass(frozen=True, slots=True)
class Detail:
    """How closely a model is to look at a picture. Validated on construction; raises ``InvalidField``.

    ``level`` is OpenAI's ``detail``. ``min_pixels`` and ``max_pixels`` are Qwen-VL's: the fewest and the most pixels
    that a picture has once it is resized; ``None`` is the model's own limit, which its highest never exceeds. What a
    family cannot use has no effect there (``vision.detail``).
    """

    level: str = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.level not in DETAIL_LEVELS:
            raise InvalidField(f"detail must be auto, low or high, not {str(self.level)[:64]!r}", param="detail")
        for name in ("min_pixels", "max_pixels"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and 1 <= value < 2**53):
                raise InvalidField(f"{name} must be a whole number of pixels, at least 1, got {value}", param=name)
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise InvalidField(
                f"min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}", param="min_pixels"
            )

    def said(self) -> dict[str, str | int]:
        """What differs from the default, by its name on the wire."""
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        level: dict[str, str | int] = {} if self.level == "auto" else {"detail": self.level}
        return level | {name: value for name, value in limits.items() if value is not None}


class MediaItem(Protocol):
    """A piece of a prompt that is no text: a picture, a block of a video, a sound. Immutable, and can be pickled.

    ``content`` is its identity in every cache, together with whatever of it decides the positions of its rows; ``rows``
    the number of its embedding rows, and of placeholder tokens; ``work`` what its tower has to do for it, in vision
    patches or what takes as long. ``data`` are the bytes of the file that it came in, and ``source`` a digest that
    names them: items of one file share it, and ``with_data`` puts the bytes back where they were left out on the way.
    """

    @property
    def kind(self) -> MediaKind: ...
    @property
    def content(self) -> ContentHash: ...
    @property
    def rows(self) -> int: ...
    @property
    def work(self) -> int: ...
    @property
    def data(self) -> bytes: ...
    @property
    def source(self) -> bytes: ...
    def with_data(self, data: bytes, /) -> MediaItem: ...


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One picture of a prompt, encoded as it was uploaded.

    ``content`` is its identity in every cache; ``grid`` is the work that its vision tower has with it, and ``rows``
    the number of its embedding rows (and of placeholder tokens), both at the ``detail`` that was asked for. ``resized``
    is the width and height in pixels at which the model sees it as a whole; ``None`` where it does not.
    """

    data: bytes = field(repr=False)
    header: ImageHeader
    content: ContentHash
    grid: Grid
    rows: int
    resized: tuple[int, int] | None = None
    detail: Detail = Detail()

    @property
    def kind(self) -> MediaKind:
        return "image"

    @property
    def work(self) -> int:
        return self.grid.t * self.grid.h * self.grid.w

    @property
    def source(self) -> bytes:
        return self.content

    def with_data(self, data: bytes, /) -> Picture:
        return dataclasses.replace(self, data=data)


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture in a message: the file's bytes, in any accepted format."""

    data: bytes = field(repr=False)
    detail: Detail = Detail()


@dataclass(frozen=True, slots=True)
class VideoPart:
    """A video in a message: the file's bytes, and which of its frames the model is to see.

    ``fps`` are frames a second of the video's own time, and at most ``max_frames`` of them; ``num_frames`` is so many
    over the whole length instead. ``None`` leaves it to the server. Validated on construction; raises ``InvalidField``.
    """

    data: bytes = field(repr=False)
    fps: float | None = None
    num_frames: int | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and not 0.01 <= self.fps <= 240.0:  # also refuses NaN
            raise InvalidField(f"fps must be between 0.01 and 240 frames a second, got {self.fps}", param="fps")
        for name in ("num_frames", "max_frames"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and 1 <= value <= 65_536):
                raise InvalidField(f"{name} must be a whole number from 1 to 65536, got {value}", param=name)
        if self.num_frames is not None and (self.fps is not None or self.max_frames is not None):
            raise InvalidField("num_frames says how many frames by itself: leave out fps and max_frames", param="fps")


@dataclass(frozen=True, slots=True)
class AudioPart:
    """A sound in a message: the file's bytes, in any accepted format."""

    data: bytes = field(repr=False)


MediaPart = ImagePart | VideoPart | AudioPart

Part = TextPart | MediaPart

PART_KINDS: Mapping[type[MediaPart], MediaKind] = {ImagePart: "image", VideoPart: "video", AudioPart: "audio"}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; parts keep the order in which the caller wrote them."""

    role: str
    parts: tuple[Part, ...]


class MediaRange(NamedTuple):
    """Positions ``start <= i < end`` of a prompt hold rows of ``media[item]``, in order.

    An item may own several ranges (a picture's tiles with text between); its rows run on through them.
    """

    start: int
    end: int
    item: int


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Token ids (int64, 1-D, read only) with a placeholder id at every row of ``media``.

    The first ``system_tokens`` are the system prompt's; statistics of reuse tell them from pictures and history.
    ``opens_answer`` says that the template ends here and what comes next begins an answer.
    """

    token_ids: IntArray
    media: tuple[MediaItem, ...] = ()
    ranges: tuple[MediaRange, ...] = ()
    system_tokens: int = 0
    opens_answer: bool = False

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(item for item in self.media if isinstance(item, Picture))

    @property
    def picture_tokens(self) -> int:
        return self.tokens_of("image")

    def tokens_of(self, kind: MediaKind) -> int:
        """How many tokens stand for rows of items of this kind."""
        return sum(r.end - r.start for r in self.ranges if self.media[r.item].kind == kind)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What the engine is asked to do. ``cache_salt`` keeps tenants' cached prefixes apart.

    ``constraint`` is what the answer must look like. With ``score_from`` nothing is generated: the last event carries
    the log-probabilities of the prompt's tokens from that position on (at least 1) as its ``logprobs``.
    """

    id: str
    prompt: Prompt
    sampling: SamplingParams
    cache_salt: str = ""
    constraint: Constraint | None = None
    score_from: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. ``cached_tokens`` is the part of the prompt that was not computed again.

    ``cached_pictures`` counts the prompt's pictures whose embedding rows were not computed for this request. The prompt
    begins with ``system_tokens`` of a system prompt (the template's own where it has one), and ``cached_system_tokens``
    of these were not computed again. ``video_tokens`` and ``audio_tokens`` are the prompt's for videos and sounds.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    image_tokens: int
    cached_pictures: int = 0
    system_tokens: int = 0
    cached_system_tokens: int = 0
    video_tokens: int = 0
    audio_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token: its id, text and log-probability, and the ``(id, text, logprob)`` of the best."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ConstraintReport:
    """How a constraint was kept.

    ``step`` is ``"strict"`` where exactly what was asked is enforced, else ``"coerced"`` or ``"lenient"``, and
    ``relaxed`` says what was given up, a sentence each. ``closed_early`` says that the budget, not the model, ended the
    answer, which is complete all the same. ``forced_tokens`` took no forward pass of their own.
    """

    step: str = "strict"
    relaxed: tuple[str, ...] = ()
    closed_early: bool = False
    forced_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Stages:
    """When a request passed the engine's stages, in seconds of the machine's monotonic clock.

    It waited from ``added`` to ``admitted``, when its first tokens were planned. ``encoding`` is from the first to the
    last work on those of its media items whose rows were made meanwhile, ``None`` where none were.
    """

    added: float
    admitted: float
    encoding: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What one step adds to a request.

    The last event of a request, and only that, has ``error``, or ``usage`` and a ``finish_reason``: ``"stop"`` or
    ``"length"``; and a ``constraint`` where the request has one, and its ``stages`` where the engine has noted them.
    ``text`` may be empty: bytes of an unfinished character and the possible start of a stop string are held back.
    """

    request_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    error: MMServeError | None = None
    constraint: ConstraintReport | None = None
    stages: Stages | None = None

    @property
    def last(self) -> bool:
        return self.finish_reason is not None or self.error is not None
