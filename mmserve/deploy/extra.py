"""Ray is an extra; what needs it asks here first."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from mmserve.errors import ConfigError


def require_ray(command: str, find: Callable[[str], object | None] = importlib.util.find_spec) -> None:
    """Raises ``ConfigError``, which says how to get Ray, where it is not installed. Imports nothing."""
    if find("ray") is None:
        raise ConfigError(f"{command} runs on Ray, which is not installed here: pip install 'mmserve[ray]'")
