"""Videos in prompts: from a file to the blocks that a Qwen-VL tower takes one by one, each of its own identity."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmserve.checkpoint import Checkpoint
from mmserve.config import Limits
from mmserve.errors import PromptTooLong, UnsupportedPicture, UnsupportedVideo
from mmserve.types import ContentHash, Grid, VideoPart
from vision.frames import BLOCK, blocks, decoded, frames_hash
from vision.geometry import QwenGeometry
from vision.identity import digest, fingerprint
from vision.video import Sampling, Video, VideoBlock, VideoHeader, probe, sample

MOST_PIXELS = 768 * 28 * 28
"""Of a frame, once it is resized: what Qwen's own tools take. Several models' files name the limit of pictures, which
would leave room for some seconds of video."""

REMEMBERED_VIDEOS = 512

_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": MOST_PIXELS}


def video_geometry(vision_config: Mapping[str, Any], processor: Mapping[str, Any]) -> QwenGeometry:
    """How frames are cut: as transformers' ``Qwen2VLVideoProcessor`` does by these settings, with ``MOST_PIXELS``.

    Each frame's size depends on the frame alone, however many there are. Raises ``ConfigError``.
    """
    read = QwenGeometry.from_configs(vision_config, {**processor, "size": processor.get("size") or _SIZE})
    most = min(read.max_pixels, MOST_PIXELS)
    return QwenGeometry(read.patch_size, read.merge_size, min(read.min_pixels, most), most)


def qwen_interval(checkpoint: Checkpoint) -> Callable[[float], float]:
    """From frames a second to how far apart, on the time axis, the rows of blocks stand. Equal to transformers'
    ``get_rope_index``: Qwen2-VL counts blocks, Qwen2.5-VL time (``tokens_per_second``), in float32."""
    if checkpoint.family == "qwen2_vl":
        return lambda _: 1.0
    tokens = int(checkpoint.vision_config.get("tokens_per_second", 4))
    return lambda rate: float(tokens * np.float32(BLOCK / rate))


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is remembered of a video: its shape, and its blocks' digests. A few hundred bytes a minute."""

    header: VideoHeader
    sampling: Sampling
    width: int
    height: int
    frames: tuple[bytes, ...]


class VideoReader:
    """A ``mmserve.prompt.layout.ReadMedia`` for videos.

    It remembers the blocks of the last videos, so another question about one decodes nothing here. Thread safe.
    """

    def __init__(self, checkpoint: Checkpoint, geometry: QwenGeometry, interval: Callable[[float], float]) -> None:
        """``interval`` is as :func:`qwen_interval` makes it."""
        self._geometry = geometry
        self._interval = interval
        self._max_model_len = checkpoint.max_model_len
        self._fingerprint = fingerprint(
            weights=checkpoint.fingerprint,
            vision_config=checkpoint.vision_config,
            processor=checkpoint.video_processor,
            geometry=geometry,
            decoder="blocks of frames, 1",
        )
        self._memo = _Memo(REMEMBERED_VIDEOS)
        self.decoded = 0

    def __call__(self, part: VideoPart, /, *, limits: Limits, cache_salt: str) -> tuple[VideoBlock, ...]:
        """The video's blocks, in order.

        Raises ``VideoError``, and ``PromptTooLong`` before anything is decoded where they cannot fit the context.
        """
        file = hashlib.sha256(part.data).digest()
        wish = (part.fps, part.num_frames, part.max_frames)
        seen = self._memo.get((cache_salt, file, wish, limits), lambda: self._look(part, limits))
        video = Video(part.data, file, seen.header, seen.sampling, seen.width, seen.height)
        grid, rows = self._measure(seen.width, seen.height)
        interval = self._interval(seen.sampling.rate)
        return tuple(
            VideoBlock(video, k, frames, self._content(frames, k, interval, cache_salt), grid, rows, interval)
            for k, frames in enumerate(seen.frames)
        )

    def _look(self, part: VideoPart, limits: Limits) -> _Seen:
        header = probe(part.data, limits)
        sampling = sample(header, part, limits)
        count = -(-len(sampling.times) // BLOCK)
        _, rows = self._measure(header.width, header.height)
        if count * rows >= self._max_model_len:
            raise PromptTooLong(
                f"the video's {len(sampling.times)} frames take {count * rows:,} tokens, but the model takes "
                f"{self._max_model_len:,} with everything else: ask for fewer with max_frames or fps, or scale it down"
            )
        self.decoded += 1
        hashes: list[bytes] = []
        height = width = 0
        for block in blocks(decoded(part.data, header, sampling)):
            height, width, _ = block[0].shape
            hashes.append(frames_hash(block))
        return _Seen(header, sampling, width, height, tuple(hashes))

    def _measure(self, width: int, height: int) -> tuple[Grid, int]:
        try:
            return self._geometry.measure(width, height)
        except UnsupportedPicture as error:
            raise UnsupportedVideo(error.message.replace("the picture", "the video", 1)) from None

    def _content(self, frames: bytes, index: int, interval: float, cache_salt: str) -> ContentHash:
        """Identity of a block's rows and, given what stands before it, of their positions: so it covers whether a video
        begins here."""
        where = b"first" if index == 0 else b"later"
        salt = cache_salt.encode("utf-8", "surrogatepass")
        return ContentHash(
            digest("mmserve/video-block/1", self._fingerprint, salt, frames, float(interval).hex().encode(), where)
        )


class _Memo:
    """What was made for the last ``size`` keys, each once however many ask for it at a time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._made: OrderedDict[object, Future[_Seen]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, make: Callable[[], _Seen]) -> _Seen:
        with self._lock:
            future = self._made.get(key)
            first = future is None
            if future is None:
                future = self._made[key] = Future()
            self._made.move_to_end(key)
            while len(self._made) > self._size:
                self._made.popitem(last=False)
        if first:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    if self._made.get(key) is future:
                        del self._made[key]
                future.set_exception(error)
        return future.result()
