"""Whatever a caller calls a sound -> the bytes of a sound file. They go to the server as they are."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, BinaryIO, TypeAlias, cast

SoundLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | SoundFile"
"""A path, the bytes of a sound file, a binary file object, or what ``Client.sound`` made of one."""

_MAGIC = (
    (b"RIFF", "wav", "audio/wav"),
    (b"fLaC", "flac", "audio/flac"),
    (b"OggS", "ogg", "audio/ogg"),
    (b"ID3", "mp3", "audio/mpeg"),
    (b"\xff\xfb", "mp3", "audio/mpeg"),
    (b"\xff\xf3", "mp3", "audio/mpeg"),
)


@dataclass(frozen=True, slots=True)
class SoundFile:
    """The bytes of one sound file. The name is a courtesy to whoever reads the server's log."""

    name: str
    data: bytes = field(repr=False)

    @property
    def kind(self) -> str:
        """The form's part that carries it."""
        return "audio"

    @property
    def format(self) -> str:
        """``"wav"``, ``"mp3"``, ``"flac"`` or ``"ogg"`` by the first bytes; empty for what is not known here."""
        return next((format_ for magic, format_, _ in _MAGIC if self.data.startswith(magic)), "")

    @property
    def media_type(self) -> str:
        """By the first bytes; ``application/octet-stream`` for what is not known here (the server decides)."""
        types = (type_ for magic, _, type_ in _MAGIC if self.data.startswith(magic))
        return next(types, "application/octet-stream")

    def part(self) -> dict[str, Any]:
        """A part of a message's content, in OpenAI's form."""
        data = base64.b64encode(self.data).decode("ascii")
        return {"type": "input_audio", "input_audio": {"data": data, "format": self.format}}


def read_sounds(sounds: SoundLike | Sequence[SoundLike] | None) -> tuple[SoundFile, ...]:
    """Read one sound, or each of a list or tuple; none for ``None``. Raises as :func:`read_sound` does."""
    if sounds is None:
        return ()
    if isinstance(sounds, list | tuple):
        return tuple(read_sound(sound) for sound in sounds)
    return (read_sound(cast("SoundLike", sounds)),)


def read_sound(sound: SoundLike) -> SoundFile:
    """Read one sound; raises OSError (``FileNotFoundError``) for a file that cannot be read, TypeError otherwise."""
    if isinstance(sound, SoundFile):
        return sound
    if isinstance(sound, str | os.PathLike):
        with open(sound, "rb") as file:
            return SoundFile(PurePath(sound).name, file.read())
    if isinstance(sound, bytes | bytearray | memoryview):
        return SoundFile("sound", bytes(sound))
    data = sound.read() if hasattr(sound, "read") else None
    if not isinstance(data, bytes):
        raise TypeError(f"a sound is a path, bytes or a file object open in binary mode, not {type(sound).__name__}")
    name = getattr(sound, "name", None)  # an int for some file objects, absent for others
    return SoundFile(PurePath(name).name if isinstance(name, str) else "sound", data)
