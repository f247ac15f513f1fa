"""Without PyAV videos and sounds are refused with the way to get it."""

from __future__ import annotations

import sys

import pytest

from mmserve.config import Limits
from mmserve.errors import UnsupportedAudio, UnsupportedVideo
from mmserve.sounds.decode import decoder_id
from mmserve.types import VideoPart
from tests.vision.clips import clip
from vision.pyav import require_pyav
from vision.video import probe


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = VideoPart(clip(1.0)).data
    require_pyav(UnsupportedVideo)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnsupportedVideo, match="pip install av"):
        probe(data, Limits())
    with pytest.raises(UnsupportedAudio, match="pip install av"):
        decoder_id()
