"""Which addresses may be asked for a picture: the URL as it is written, and the IP address that it leads to.

The networks are those of IANA's special-purpose registries for IPv4 and IPv6 (RFC 6890 and its updates), written down
here because ``ipaddress.is_global`` differs between Python versions and calls some addresses global that lead back
inside: 6to4 and Teredo carry an IPv4 address, which is why these are refused whole.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import TypeAlias

import httpx

from mmserve.errors import PictureNotFetched

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL = 2048

_NOT_PUBLIC_4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT; one cloud has its metadata here
            "127.0.0.0/8",
            "168.63.129.16/32",  # a cloud's own services, at a public address
            "169.254.0.0/16",  # link-local, most clouds' metadata
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
"""All that is routed. Loopback, mapped and compatible IPv4, NAT64, local, link-local and multicast lie outside."""

_NOT_PUBLIC_6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # Teredo, benchmarking, ORCHID and other protocols
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)
_ISATAP = (0x00005EFE, 0x02005EFE)
"""The upper half of interface identifiers that carry an IPv4 address (RFC 5214, 6.1)."""

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


def is_public(address: Address) -> bool:
    """Whether ``address`` is one of the internet's, for unicast."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None or address not in _PUBLIC_6:
        return False
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        return False
    return not any(address in network for network in _NOT_PUBLIC_6)


def checked_url(text: str, domains: Collection[str], ports: Collection[int]) -> httpx.URL:
    """``text`` as a URL that may be asked, as far as its writing tells. What is returned is what must be used, so that
    no second parser reads it another way.

    Raises ``PictureNotFetched``. ``domains`` are host names, and ``*.name`` for all below one; empty allows all.
    """
    if len(text) > MAX_URL:
        raise PictureNotFetched(f"the picture's address has more than {MAX_URL} characters")
    if re.search(r"[\x00-\x20\x7f\\]", text):
        raise PictureNotFetched("the picture's address has spaces, control characters or backslashes in it")
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii")
        port = port_of(url)
    except (httpx.InvalidURL, ValueError):
        raise PictureNotFetched("the picture's address is not a URL") from None
    if url.scheme not in ("http", "https"):
        raise PictureNotFetched("a picture's address must begin with https:// or http://")
    if url.userinfo or "@" in re.split(r"[/?#]", text.partition("://")[2], maxsplit=1)[0]:
        raise PictureNotFetched("a picture's address may not have a user name or password in it")
    if port not in ports:
        raise PictureNotFetched(f"pictures are fetched from the ports {', '.join(map(str, sorted(ports)))} only")
    if literal(host) is None:
        _require_name(host)
    if domains and not any(_matches(host.rstrip("."), domain) for domain in domains):
        raise PictureNotFetched("pictures from this host are not allowed on this server")
    return url


def port_of(url: httpx.URL) -> int:
    if url.port is not None:
        return url.port
    return 443 if url.scheme == "https" else 80


def literal(host: str) -> Address | None:
    """``host`` as an IP address in its one usual spelling; ``None`` for anything else."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _require_name(host: str) -> None:
    """Raises for what is no host name. What ends in a number is an IPv4 address in another spelling (decimal, octal,
    hexadecimal, fewer parts), which resolvers take for one (WHATWG URL, 3.5)."""
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise PictureNotFetched("the picture's address has no valid host name")
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        raise PictureNotFetched("an IP address must be written as four decimal numbers, or as IPv6 in brackets")


def _matches(host: str, domain: str) -> bool:
    domain = domain.lower().rstrip(".")
    if domain.startswith("*."):
        return host.endswith(domain[1:])
    return host == domain
