"""Options of a server that say who may use it, what it may reach, and how much and how long it takes."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import re
import sys
from typing import TYPE_CHECKING, Any

from mmserve.cli_keys import add_keys_file
from mmserve.config import Limits
from mmserve.errors import ConfigError

if TYPE_CHECKING:
    from web.service import Service

_LIMITS = {
    "max_body_bytes": "bytes of a request",
    "max_parts": "parts of a form",
    "max_field_bytes": "bytes of a form's text field",
    "max_header_bytes": "bytes of a request's headers",
    "header_seconds": "for a request's headers to arrive",
    "upload_seconds": "for a request's body to arrive",
}


def add_safety(parser: argparse.ArgumentParser) -> None:
    """Options that :func:`secured` and :func:`limits_of` read."""
    group = parser.add_argument_group("safety")
    add_keys_file(group)
    group.add_argument(
        "--allow-remote-pictures", action="store_true", help="fetch pictures from public addresses that requests name"
    )
    group.add_argument(
        "--remote-domain",
        action="append",
        default=[],
        metavar="NAME",
        help="fetch from this host only, or with *.NAME from all below it; repeat it for several",
    )
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin use the API (https://example.org, or * for all); repeat it for several",
    )
    defaults = Limits()
    for name, what in _LIMITS.items():
        default = getattr(defaults, name)
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, type=type(default), default=default, metavar="N", help=f"{what} (%(default)s)")
    group.add_argument(
        "--upload-idle-seconds", type=float, default=30.0, metavar="N", help="it may stand still (%(default)s)"
    )


def limits_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """These options as fields of ``Limits``; none for a command that has them not. Raises ``ConfigError``."""
    given = {name: getattr(arguments, name) for name in _LIMITS if hasattr(arguments, name)}
    for name, value in given.items():
        if value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be more than 0")
    return given


def secured(service: Service, arguments: argparse.Namespace) -> Service:
    """``service`` as these options want it. Raises ``ConfigError``; warns where it is open to other machines."""
    from web.access.ring import KeyRing
    from web.remote import RemotePictures, RemoteRules
    from web.safety import Safety

    if arguments.remote_domain and not arguments.allow_remote_pictures:
        raise ConfigError("--remote-domain limits --allow-remote-pictures; give both")
    for domain in arguments.remote_domain:
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_.:-]+", domain):
            raise ConfigError(f'--remote-domain takes a host name, or *.NAME, and not "{domain}"')
    for origin in arguments.cors_origin:
        if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise ConfigError(f'--cors-origin takes an origin as https://example.org, and not "{origin}"')
    remote = None
    if arguments.allow_remote_pictures:
        remote = RemotePictures(RemoteRules(tuple(arguments.remote_domain)), service.limits)
    keys = None if arguments.keys_file is None else KeyRing(arguments.keys_file)
    if keys is None and not _is_loopback(arguments.host):
        print(
            f"mmserve: there are no API keys, so all who reach {arguments.host} may use this server: see mmserve keys",
            file=sys.stderr,
        )
    if arguments.upload_idle_seconds <= 0:
        raise ConfigError("--upload-idle-seconds must be more than 0")
    safety = Safety(keys, remote, tuple(arguments.cors_origin))
    return dataclasses.replace(service, safety=safety, upload_idle_seconds=arguments.upload_idle_seconds)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
