"""From uploaded bytes to a ``Sound``: everything the prompt needs to know. Torch-free."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

from mmserve.config import Limits
from mmserve.sounds.decode import count
from mmserve.sounds.geometry import SoundGeometry
from mmserve.sounds.header import AudioHeader, probe
from mmserve.sounds.identity import sound_hash
from mmserve.types import AudioPart, ContentHash, MediaKind

REMEMBERED = 4096
"""How many sounds' lengths are kept, of those whose headers do not give them: some hundred bytes each."""


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """One sound of a prompt, encoded as it was uploaded.

    ``content`` is its identity in every cache; ``samples`` how many are heard once it is resampled, and ``seconds`` how
    long they last; ``frames`` are the log-mel frames that its tower takes, and ``rows`` the number of its embedding
    rows (and of placeholder tokens).
    """

    data: bytes = field(repr=False)
    header: AudioHeader
    content: ContentHash
    samples: int
    seconds: float
    frames: int
    rows: int

    @property
    def kind(self) -> MediaKind:
        return "audio"

    @property
    def work(self) -> int:
        return self.frames

    @property
    def source(self) -> bytes:
        return self.content

    def with_data(self, data: bytes, /) -> Sound:
        return replace(self, data=data)


class SoundReader:
    """Reads sounds for one model. Threads may share it: all that it keeps is how long sounds are that it has decoded,
    by their whole identity (so a tenant learns nothing of another's)."""

    def __init__(self, geometry: SoundGeometry, fingerprint: Callable[[], bytes]) -> None:
        """``fingerprint`` gives :func:`mmserve.sounds.identity.sound_fingerprint` of ``geometry``; it is asked for with
        the first sound, since it names the decoder's libraries, which are loaded then."""
        self._geometry = geometry
        self._fingerprint = cache(fingerprint)
        self._counts: OrderedDict[ContentHash, int] = OrderedDict()
        self._lock = threading.Lock()
        self.decoded = 0

    def __call__(self, part: AudioPart, /, *, limits: Limits, cache_salt: str = "") -> tuple[Sound]:
        """Probe, hash and measure an encoded sound; its bytes are kept, not copied.

        The cost is one SHA-256 pass over them. Only a sound that has not been met before, and whose header does not
        give its number of samples (MP3, Ogg), is decoded as far as it is heard; ``decoded`` counts these. Raises
        ``AudioError``\\ s.
        """
        data = part.data
        header = probe(data, limits)
        content = sound_hash(data, self._fingerprint(), cache_salt)
        heard = self._count(data, header, content)
        samples = self._geometry.resampled(heard, header.rate)
        frames, rows = self._geometry.measure(samples)
        return (Sound(data, header, content, samples, samples / self._geometry.rate, frames, rows),)

    def _count(self, data: bytes, header: AudioHeader, content: ContentHash) -> int:
        if header.samples is not None:
            return self._geometry.heard(header.samples, header.rate)
        with self._lock:
            if content in self._counts:
                self._counts.move_to_end(content)
                return self._counts[content]
        found = count(data, header, self._geometry)
        with self._lock:
            self.decoded += 1
            self._counts[content] = found
            while len(self._counts) > REMEMBERED:
                self._counts.popitem(last=False)
        return found
