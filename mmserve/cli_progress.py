"""A run's progress on a terminal, as one line that changes; elsewhere, as a line now and then."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Self, TextIO

from mmserve.caption import Progress

_REDRAW, _LINE = 0.1, 10.0
_BAR = 24


class ProgressLine:
    """Shows the last progress that it was told, no more often than people look (seconds: ``_REDRAW``, ``_LINE``)."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty()
        self._next = clock() if self._terminal else clock() + _LINE
        self._last: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._last is not None:
            self._draw(self._last)
            self._stream.write("\n")
            self._stream.flush()

    def show(self, progress: Progress) -> None:
        self._last = progress
        now = self._clock()
        if now < self._next:
            return
        self._next = now + (_REDRAW if self._terminal else _LINE)
        self._draw(progress)

    def _draw(self, progress: Progress) -> None:
        text = describe(progress)
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            text = f"\r\x1b[K{bar(progress)} {text}"[: width + 4]  # the control characters take no room
        else:
            text += "\n"
        self._stream.write(text)
        self._stream.flush()


def describe(progress: Progress) -> str:
    """``1200/5000 pictures, 45.1/s, 1:24 left, 3 failed, 23 % of prompts cached``."""
    done = progress.total - progress.left
    parts = [f"{done}/{progress.total} pictures", f"{progress.rate:.1f}/s"]
    if progress.eta is not None and progress.left:
        parts.append(f"{duration(progress.eta)} left")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if cached := cached_share(progress):
        parts.append(cached)
    return ", ".join(parts)


def cached_share(progress: Progress) -> str:
    """What the server's caches saved, or nothing where nothing was asked."""
    if not progress.prompt_tokens:
        return ""
    share = f"{100 * progress.cached_tokens / progress.prompt_tokens:.0f} % of prompts cached"
    return share + (f" ({progress.cached_pictures} pictures)" if progress.cached_pictures else "")


def bar(progress: Progress) -> str:
    done = progress.total - progress.left
    full = _BAR * done // progress.total if progress.total else _BAR
    return f"[{'#' * full}{'.' * (_BAR - full)}]"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: ``1:02:03``, ``2:03``."""
    whole = round(seconds)
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
