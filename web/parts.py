"""What a part of a message may say: its text, picture, video or sound, and how closely that is looked at."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from mmserve.errors import InvalidField, RequestError
from mmserve.types import Detail, MediaKind, MediaPart, VideoPart
from web.media import part_of


class DetailFields(BaseModel):
    """How closely the model looks at pictures; see ``mmserve.types.Detail``."""

    detail: str | None = Field(None, description="auto, low or high: how closely the model looks.")
    min_pixels: int | None = Field(None, description="The fewest pixels that a picture is resized to.")
    max_pixels: int | None = Field(None, description="The most pixels that a picture is resized to.")

    def looking(self, where: str = "") -> Detail:
        """Raises ``InvalidField``, its ``param`` under ``where``."""
        try:
            return Detail(self.detail or "auto", self.min_pixels, self.max_pixels)
        except InvalidField as error:
            raise InvalidField(error.message, param=f"{where}{error.param}") from None


class FrameFields(BaseModel):
    """Which frames of a video the model sees; see ``mmserve.types.VideoPart``."""

    fps: float | None = Field(None, description="Frames a second of the video that the model sees; by default 2.")
    num_frames: int | None = Field(None, description="So many frames over the video's whole length, instead of fps.")
    max_frames: int | None = Field(None, description="The most frames that it sees; they lie further apart then.")

    def watching(self, data: bytes, where: str = "") -> VideoPart:
        """Raises ``InvalidField``, its ``param`` under ``where``."""
        try:
            return VideoPart(data, self.fps, self.num_frames, self.max_frames)
        except InvalidField as error:
            raise InvalidField(error.message, param=f"{where}{error.param}") from None


def form_field(error: RequestError) -> str | None:
    """The field of a form that an error is about, where that is one about detail or frames; else ``None``."""
    name = (error.param or "").rpartition(".")[2]
    return name if name in DetailFields.model_fields or name in FrameFields.model_fields else None


class ImageUrl(DetailFields):
    url: str


def _as_image_url(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class VideoUrl(FrameFields):
    url: str


class AudioUrl(BaseModel):
    url: str


class InputAudio(BaseModel):
    """``data`` is the file in base64. Its ``format`` is not looked at: the file says it itself."""

    data: str
    format: str | None = None


class ContentPart(BaseModel):
    """One part of a message: text, a picture, video or sound as a data URI, or words with which an assistant refused.

    The limits in pixels may stand beside ``image_url``, where DashScope has them, or inside.
    """

    type: Literal["text", "image_url", "video_url", "audio_url", "input_audio", "refusal"]
    text: str | None = None
    refusal: str | None = None
    image_url: Annotated[ImageUrl, BeforeValidator(_as_image_url)] | None = None
    video_url: Annotated[VideoUrl, BeforeValidator(_as_image_url)] | None = None
    audio_url: Annotated[AudioUrl, BeforeValidator(_as_image_url)] | None = None
    input_audio: InputAudio | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    def media(self) -> tuple[MediaKind, str] | None:
        """The kind and address of what is no text in it."""
        if self.type == "image_url" and self.image_url is not None:
            return "image", self.image_url.url
        if self.type == "video_url" and self.video_url is not None:
            return "video", self.video_url.url
        if self.type == "audio_url" and self.audio_url is not None:
            return "audio", self.audio_url.url
        if self.type == "input_audio" and self.input_audio is not None:
            given = self.input_audio.data
            return "audio", given if given[:5].lower() == "data:" else f"data:;base64,{given}"
        return None

    def carrying(self, kind: MediaKind, data: bytes, where: str) -> MediaPart:
        """The part of a message that it is, its file being ``data``. Raises ``InvalidField``."""
        if kind == "video":
            return (self.video_url or FrameFields()).watching(data, f"{where}.")
        return part_of(kind, data, self.looking(f"{where}."))

    def looking(self, where: str) -> Detail:
        """Raises ``InvalidField``, its ``param`` under ``where``."""
        inside = self.image_url or DetailFields()
        fields = DetailFields(
            detail=inside.detail,
            min_pixels=self.min_pixels if inside.min_pixels is None else inside.min_pixels,
            max_pixels=self.max_pixels if inside.max_pixels is None else inside.max_pixels,
        )
        return fields.looking(where)

    @model_validator(mode="after")
    def _carries_its_type(self) -> Self:
        if getattr(self, self.type) is None:
            raise ValueError(f'a part of type "{self.type}" needs the field {self.type}')
        return self
