"""The backend of programs that name none: the one value of this process that programs share."""

from __future__ import annotations

from mmserve.errors import ConfigError
from mmserve.lang.calls import Backend

_chosen: list[Backend] = []


def set_default_backend(backend: Backend) -> None:
    """Run programs on ``backend`` from now on, in all threads. The one before is not closed."""
    if not isinstance(backend, Backend):
        raise TypeError(
            "a backend is an Engine(model_path=...), a RuntimeEndpoint(url) or a Runtime(...), "
            f"not {type(backend).__name__}"
        )
    _chosen[:] = [backend]


def default_backend() -> Backend:
    """Raises ``ConfigError`` where none was set."""
    if not _chosen:
        raise ConfigError(
            "there is no backend to run on: call set_default_backend(Engine(model_path=...)) or "
            "set_default_backend(RuntimeEndpoint(url)) first, or give run(..., backend=...)"
        )
    return _chosen[0]
