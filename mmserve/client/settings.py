"""What both clients give to httpx: where to, how long, and who asks."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import httpx

from mmserve import __version__
from mmserve.errors import ConfigError

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = 300.0
DEFAULT_RETRIES = 3

_CONNECT_TIMEOUT = 10.0
_KEEPALIVE = 4.0  # seconds; below the 5 s after which uvicorn closes an idle connection


def server_url(base_url: str) -> httpx.URL:
    """``base_url`` as the clients use it; a trailing ``/v1``, as OpenAI's clients want it, is dropped.

    Raises ConfigError when it is not an ``http`` or ``https`` URL.
    """
    try:
        url = httpx.URL(base_url.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL as error:
        raise ConfigError(f"{base_url!r} is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"a server's URL is like {DEFAULT_BASE_URL}, not {base_url!r}")
    return url


def http_settings(url: httpx.URL, api_key: str | None, timeout: float) -> dict[str, Any]:
    """Keyword arguments of ``httpx.Client`` and ``httpx.AsyncClient`` alike.

    The number of connections is not limited: how much is asked at once is for the caller to say, and the server's
    queue to refuse.
    """
    headers = {"User-Agent": f"mmserve/{__version__}"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    return {
        "base_url": url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout, connect=min(timeout, _CONNECT_TIMEOUT), pool=None),
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEPALIVE),
        "trust_env": not _is_loopback(url.host),  # proxies of the environment are for servers elsewhere
    }


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
