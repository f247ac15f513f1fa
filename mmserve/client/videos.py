"""Whatever a caller calls a video -> the bytes of its file, as they are."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import BinaryIO, TypeAlias

VideoLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | VideoFile"
"""A path, the bytes of a video file, or a binary file object."""


@dataclass(frozen=True, slots=True)
class VideoFile:
    """The bytes of one video file. The name is a courtesy to whoever reads the server's log."""

    name: str
    data: bytes = field(repr=False)

    @property
    def kind(self) -> str:
        """The form's part that carries it."""
        return "video"

    @property
    def media_type(self) -> str:
        """By the first bytes; ``application/octet-stream`` for what is not known here (the server decides)."""
        if self.data[4:8] == b"ftyp":
            return "video/quicktime" if self.data[8:10] == b"qt" else "video/mp4"
        if self.data[:4] == b"\x1a\x45\xdf\xa3":
            return "video/webm"
        return "video/x-msvideo" if self.data[8:12] == b"AVI " else "application/octet-stream"

    @property
    def data_uri(self) -> str:
        """The bytes as chat messages carry them."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


def read_videos(videos: VideoLike | Sequence[VideoLike] | None) -> tuple[VideoFile, ...]:
    """Read one video, each of a list or tuple, or none. Raises as :func:`read_video` does."""
    if videos is None:
        return ()
    return tuple(map(read_video, videos)) if isinstance(videos, list | tuple) else (read_video(videos),)  # type: ignore[arg-type]


def read_video(video: VideoLike) -> VideoFile:
    """Read one video; raises OSError (``FileNotFoundError``) for a file that cannot be read, TypeError otherwise."""
    if isinstance(video, VideoFile):
        return video
    if isinstance(video, str | os.PathLike):
        with open(video, "rb") as file:
            return VideoFile(PurePath(video).name, file.read())
    if isinstance(video, bytes | bytearray | memoryview):
        return VideoFile("video", bytes(video))
    data = video.read() if hasattr(video, "read") else None
    if not isinstance(data, bytes):
        raise TypeError(f"a video is a path, bytes or a binary file object, not {type(video).__name__}")
    return VideoFile("video", data)
