"""Reading the media of messages: measured and hashed, checked against what the model takes and a request may carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmserve.checkpoint import Checkpoint
from mmserve.config import Limits
from mmserve.errors import InvalidField, MediaError, TooManyMedia, TooManyPictures, UnsupportedMedia, UnsupportedPicture
from mmserve.prompt.layout import Layout
from mmserve.types import PART_KINDS, Detail, ImagePart, MediaItem, MediaKind, MediaPart, Message, Picture, TextPart
from vision.decode import decoder_id
from vision.geometry import Geometry
from vision.identity import fingerprint
from vision.picture import read_picture

DEFAULT_DETAIL = Detail()

NAMES: dict[MediaKind, str] = {"image": "picture", "video": "video", "audio": "sound"}
"""What people call one of a kind."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What one mark of the template stands for: some items, the first of which is ``media[first]`` of the prompt."""

    kind: MediaKind
    items: Sequence[MediaItem]
    first: int


class MediaReader:
    """Reads for one model. Keeps nothing of what it read, so several threads may share it."""

    def __init__(self, checkpoint: Checkpoint, layout: Layout, limits: Limits) -> None:
        self._checkpoint = checkpoint
        self._layout = layout
        self._limits = limits
        most = [limits.max_pictures] if layout.most_pictures is None else [limits.max_pictures, layout.most_pictures]
        self._most: dict[MediaKind, int] = {
            "image": min(most),
            "video": limits.max_videos,
            "audio": limits.max_sounds,
        }
        geometries = (layout.geometry, layout.among_others)
        self._fingerprints = {each: self._fingerprint(each) for each in geometries if each}

    def check_count(self, counts: dict[MediaKind, int], where: str) -> None:
        """Raise ``TooManyPictures`` or ``TooManyMedia`` where a request carries more of a kind than it may."""
        for kind, count in counts.items():
            if count > self._most[kind]:
                error = TooManyPictures if kind == "image" else TooManyMedia
                raise error(
                    f"the request carries {count} {NAMES[kind]}s, but at most {self._most[kind]} are allowed: "
                    "ask about fewer at a time",
                    param=where,
                )

    def read(self, messages: Sequence[Message], cache_salt: str) -> list[Shown]:
        """The media of all messages, in order. Raises ``MediaError`` and ``InvalidField``; ``param`` says where."""
        found = [
            (part, f"messages[{m}].content[{p}]")
            for m, message in enumerate(messages)
            for p, part in enumerate(message.parts)
            if not isinstance(part, TextPart)
        ]
        pictures = sum(isinstance(part, ImagePart) for part, _ in found)
        shown, first = [], 0
        for part, where in found:
            if isinstance(part, ImagePart):
                items: Sequence[MediaItem] = [self._picture(part.data, cache_salt, where, pictures, part.detail)]
            else:
                items = self._other(part, cache_salt, where)
            shown.append(Shown(PART_KINDS[type(part)], items, first))
            first += len(items)
        return shown

    def pictures(self, files: Sequence[bytes], cache_salt: str) -> tuple[Picture, ...]:
        """Pictures that come beside a prompt. Raises as :meth:`read` does, and ``TooManyPictures``."""
        self.check_count({"image": len(files)}, "images")
        return tuple(
            self._picture(data, cache_salt, f"images[{k}]", len(files), DEFAULT_DETAIL) for k, data in enumerate(files)
        )

    def _other(self, part: MediaPart, cache_salt: str, where: str) -> Sequence[MediaItem]:
        kind = PART_KINDS[type(part)]
        medium = self._layout.others.get(kind)
        if medium is None:
            raise self._not_taken(kind, where)
        try:
            return medium.read(part, limits=self._limits, cache_salt=cache_salt)
        except MediaError as error:
            raise type(error)(error.message, param=where) from error.__cause__
        except InvalidField as error:
            raise InvalidField(error.message, param=f"{where}.{error.param}") from None

    def _picture(self, data: bytes, cache_salt: str, where: str, among: int, detail: Detail) -> Picture:
        try:
            geometry = self._layout.geometry_among(among, detail)
        except InvalidField as error:
            raise InvalidField(error.message, param=f"{where}.{error.param}") from None
        if geometry is None:
            raise self._not_taken("image", where)
        try:
            return read_picture(
                data,
                geometry=geometry,
                fingerprint=self._fingerprints.get(geometry) or self._fingerprint(geometry),
                limits=self._limits,
                cache_salt=cache_salt,
                detail=detail,
            )
        except MediaError as error:
            raise type(error)(error.message, param=where) from error.__cause__

    def _not_taken(self, kind: MediaKind, where: str) -> MediaError:
        name, kinds = self._checkpoint.name, self._layout.kinds
        if not kinds:
            error = UnsupportedPicture if kind == "image" else UnsupportedMedia
            does = {"image": "sees", "video": "sees videos", "audio": "hears"}[kind]
            return error(
                f"{name} reads text only: leave the {NAMES[kind]} out, or ask a model that {does}", param=where
            )
        taken = " and ".join(f"{NAMES[each]}s" for each in kinds)
        return UnsupportedMedia(
            f"{name} takes {taken}, but no {NAMES[kind]}s: leave the {NAMES[kind]} out, or ask a model that takes it",
            param=where,
        )

    def _fingerprint(self, geometry: Geometry) -> bytes:
        checkpoint = self._checkpoint
        return fingerprint(
            weights=checkpoint.fingerprint,
            vision_config=checkpoint.vision_config,
            processor=checkpoint.processor,
            geometry=geometry,
            decoder=decoder_id(),
        )
