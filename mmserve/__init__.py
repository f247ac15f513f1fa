"""mmserve: questions about pictures, answered.

``Client`` and ``AsyncClient`` talk to a server over HTTP and import no torch. ``function``, ``gen`` and their kin are a
language for programs of several generations (docs/language.md). Names load on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmserve.client import Answer as Answer
    from mmserve.client import AsyncClient as AsyncClient
    from mmserve.client import Client as Client
    from mmserve.lang.api import assistant as assistant
    from mmserve.lang.api import assistant_begin as assistant_begin
    from mmserve.lang.api import assistant_end as assistant_end
    from mmserve.lang.api import audio as audio
    from mmserve.lang.api import gen as gen
    from mmserve.lang.api import gen_int as gen_int
    from mmserve.lang.api import gen_string as gen_string
    from mmserve.lang.api import image as image
    from mmserve.lang.api import select as select
    from mmserve.lang.api import system as system
    from mmserve.lang.api import system_begin as system_begin
    from mmserve.lang.api import system_end as system_end
    from mmserve.lang.api import user as user
    from mmserve.lang.api import user_begin as user_begin
    from mmserve.lang.api import user_end as user_end
    from mmserve.lang.api import video as video
    from mmserve.lang.calls import Backend as Backend
    from mmserve.lang.default import set_default_backend as set_default_backend
    from mmserve.lang.endpoint import RuntimeEndpoint as RuntimeEndpoint
    from mmserve.lang.errors import NoSuchVariable as NoSuchVariable
    from mmserve.lang.errors import ProgramError as ProgramError
    from mmserve.lang.local import Engine as Engine
    from mmserve.lang.program import Program as Program
    from mmserve.lang.program import function as function
    from mmserve.lang.routing import Router as Router
    from mmserve.lang.runtime import Runtime as Runtime
    from mmserve.lang.state import ProgramGroup as ProgramGroup
    from mmserve.lang.state import ProgramState as ProgramState

_NAMES = {
    "mmserve.client": ("Answer", "AsyncClient", "Client"),
    "mmserve.lang.api": (
        "assistant",
        "assistant_begin",
        "assistant_end",
        "audio",
        "gen",
        "gen_int",
        "gen_string",
        "image",
        "select",
        "system",
        "system_begin",
        "system_end",
        "user",
        "user_begin",
        "user_end",
        "video",
    ),
    "mmserve.lang.calls": ("Backend",),
    "mmserve.lang.default": ("set_default_backend",),
    "mmserve.lang.endpoint": ("RuntimeEndpoint",),
    "mmserve.lang.errors": ("NoSuchVariable", "ProgramError"),
    "mmserve.lang.local": ("Engine",),
    "mmserve.lang.program": ("Program", "function"),
    "mmserve.lang.routing": ("Router",),
    "mmserve.lang.runtime": ("Runtime",),
    "mmserve.lang.state": ("ProgramGroup", "ProgramState"),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = [  # noqa: RUF022 (the version stands last)
    "Answer",
    "AsyncClient",
    "Backend",
    "Client",
    "Engine",
    "NoSuchVariable",
    "Program",
    "ProgramError",
    "ProgramGroup",
    "ProgramState",
    "Router",
    "Runtime",
    "RuntimeEndpoint",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "audio",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "image",
    "select",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "user",
    "user_begin",
    "user_end",
    "video",
    "__version__",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
