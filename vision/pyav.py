"""PyAV is loaded with the first video or sound, and need not be there for pictures and text."""

from __future__ import annotations

from mmserve.errors import MediaError


def require_pyav(error: type[MediaError]) -> None:
    """Raises ``error`` where PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise error(
            "this server has no decoder for videos and sounds: install PyAV where it runs (pip install av), and start "
            "it again"
        ) from None
