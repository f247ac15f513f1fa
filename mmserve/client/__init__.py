"""The Python client: ``Client`` and ``AsyncClient`` over HTTP. Imports no torch.

::

    from mmserve import Client

    with Client() as client:
        print(client.ask("cat.jpg", "What is this?"))

One implementation is under both: ``calls`` builds requests and reads replies, ``flow`` decides what is sent
again, ``stream`` and ``sse`` read streamed answers, and none of them touches a socket. ``sync`` and ``aio``
carry out what they decide.
"""

from __future__ import annotations

from mmserve.client.aio import AsyncClient
from mmserve.client.answer import Answer, AnswerNotValid, CaptionResult, ConstraintKept, PictureInfo, Timing
from mmserve.client.calls import DEFAULT_CAPTION_PROMPT, AllOptions, Options
from mmserve.client.constraints import Constraints
from mmserve.client.decision import Decision
from mmserve.client.pictures import PictureFile, PictureHandle, PictureLike
from mmserve.client.refusals import about_picture
from mmserve.client.sounds import SoundFile, SoundLike
from mmserve.client.stream import AnswerStream, AsyncAnswerStream
from mmserve.client.sync import Client

__all__ = [
    "DEFAULT_CAPTION_PROMPT",
    "AllOptions",
    "Answer",
    "AnswerNotValid",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "CaptionResult",
    "Client",
    "ConstraintKept",
    "Constraints",
    "Decision",
    "Options",
    "PictureFile",
    "PictureHandle",
    "PictureInfo",
    "PictureLike",
    "SoundFile",
    "SoundLike",
    "Timing",
    "about_picture",
]
