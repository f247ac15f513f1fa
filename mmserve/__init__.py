"""mmserve: questions about pictures, answered.

``Client`` and ``AsyncClient`` talk to a server over HTTP and import no torch. Names load on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmserve.client import Answer as Answer
    from mmserve.client import AsyncClient as AsyncClient
    from mmserve.client import Client as Client

_HOMES = {"Answer": "mmserve.client", "AsyncClient": "mmserve.client", "Client": "mmserve.client"}

__all__ = ["Answer", "AsyncClient", "Client", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
