"""``mmserve deploy``: the service on Ray Serve, on one machine or on a cluster."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mmserve.cli_backend import add_address, add_engine, add_model, local_service, plain_options, service_limits
from mmserve.cli_safety import add_safety, secured
from mmserve.deploy.extra import require_ray
from mmserve.deploy.fleet import Fleet
from mmserve.deploy.routing import Bound
from mmserve.errors import ConfigError

if TYPE_CHECKING:
    from web.service import Service

APPLICATION = "mmserve"

_EPILOG = """\
Without --address a Ray of its own is started on this machine, and ends with the command. With --address (auto, or a
head node's HOST:PORT) the service is put on that cluster, whose nodes have mmserve installed; the same command with
other options replaces the replicas a few at a time. --detach leaves it there, --down takes it away.
"""

_ENVIRONMENT: Mapping[str, str] = MappingProxyType({"OMP_WAIT_POLICY": "PASSIVE"})
"""As ``mmserve.cli`` sets it for this process: OpenMP's threads otherwise spin at their barriers."""


def add_deploy(parser: argparse.ArgumentParser) -> None:
    fleet = Fleet()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "%(prog)s [--model MODEL] [--replicas N|LEAST-MOST] [--gpus N] [--address RAY] [option ...]"
    parser.epilog = _EPILOG
    group = parser.add_argument_group("model")
    add_model(group)
    group.add_argument("--served-model-name", metavar="NAME", help="the name that clients use (default: the model's)")
    group = parser.add_argument_group("cluster")
    group.add_argument("--address", metavar="RAY", help="a running Ray: auto, or HOST:PORT (default: start one here)")
    group.add_argument("--detach", action="store_true", help="end this command once the service is up, and leave it")
    group.add_argument("--down", action="store_true", help="take the service away from the cluster, and end")
    group.add_argument("--object-store-bytes", type=int, help="of a Ray that is started here (default: Ray's)")
    group = parser.add_argument_group("replicas")
    group.add_argument("--replicas", default="1", metavar="N|LEAST-MOST", help="how many run (%(default)s)")
    group.add_argument("--cpus", type=float, default=fleet.cpus, help="of its node for each (%(default)s)")
    group.add_argument("--gpus", type=float, default=fleet.gpus, help="of its node for each (%(default)s)")
    group.add_argument(
        "--target-requests", type=float, default=fleet.target_requests, help="more adds one (%(default)s)"
    )
    group.add_argument("--up-seconds", type=float, default=fleet.up_seconds, help="of more before that (%(default)s)")
    group.add_argument("--down-seconds", type=float, default=fleet.down_seconds, help="of less, to go (%(default)s)")
    group.add_argument("--most-requests", type=int, default=fleet.most_requests, help="at a time (%(default)s)")
    group.add_argument("--most-waiting", type=int, default=fleet.most_waiting, help="for a replica (%(default)s)")
    group.add_argument("--drain-seconds", type=float, default=fleet.drain_seconds, help="to finish (%(default)s)")
    group.add_argument("--fronts", type=int, default=fleet.fronts, help="processes that take HTTP (%(default)s)")
    group.add_argument("--balance", type=float, default=fleet.bound.balance, help="most load over mean (%(default)s)")
    group.add_argument("--spare", type=int, default=fleet.bound.spare, help="requests that never spill (%(default)s)")
    add_address(parser.add_argument_group("address"))
    add_engine(parser)
    add_safety(parser)
    for action in parser._actions:
        if action.metavar is None and action.type in (int, float):
            action.metavar = "N"
    parser.set_defaults(log_level="info")


def run_deploy(arguments: argparse.Namespace) -> int:
    """Raises ConfigError, also where Ray is not installed."""
    fleet = fleet_of(arguments)
    if (arguments.detach or arguments.down) and not arguments.address:
        raise ConfigError("--detach and --down are about a running Ray; name it with --address (auto, or HOST:PORT)")
    require_ray("mmserve deploy")
    from mmserve.deploy.cluster import Cluster
    from mmserve.deploy.ray_serve import serving

    where = Cluster(arguments.address, arguments.object_store_bytes, arguments.host, arguments.port)
    with serving(where) as running:
        if arguments.down:
            running.down(APPLICATION)
            return 0
        build = Builder(plain_options(arguments))
        limits = service_limits(arguments)
        url = running.up(APPLICATION, build, fleet, limits, arguments.upload_idle_seconds, _ENVIRONMENT)
        print(f"mmserve: {arguments.model} is served at {url}", file=sys.stderr, flush=True)
        if not arguments.detach:
            _until_told()
            running.down(APPLICATION)
    return 0


def _until_told() -> None:
    """Return at the first SIGINT or SIGTERM; further ones change nothing, since replicas are finishing what they do."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()


def fleet_of(arguments: argparse.Namespace) -> Fleet:
    """Raises ConfigError."""
    least, _, most = arguments.replicas.partition("-")
    if not least.isdigit() or not (most or least).isdigit():
        raise ConfigError(f"--replicas takes a number, or two as in 1-8, not {arguments.replicas!r}")
    if arguments.tp > 1 and 0 < arguments.gpus < arguments.tp:
        raise ConfigError(
            f"--tp {arguments.tp} takes as many GPUs of a replica's node, not {arguments.gpus:g}: --gpus {arguments.tp}"
        )
    return Fleet(
        least=int(least),
        most=int(most or least),
        cpus=arguments.cpus,
        gpus=arguments.gpus,
        target_requests=arguments.target_requests,
        most_requests=arguments.most_requests,
        most_waiting=arguments.most_waiting,
        up_seconds=arguments.up_seconds,
        down_seconds=arguments.down_seconds,
        drain_seconds=arguments.drain_seconds,
        fronts=arguments.fronts,
        bound=Bound(arguments.balance, arguments.spare),
    )


class Builder:
    """Makes the service that these options describe, in whichever process calls it."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Service]:
        arguments = argparse.Namespace(**self._options)
        async with local_service(arguments) as service:
            yield secured(service, arguments)
        if service.tracing is not None:
            await asyncio.to_thread(service.tracing.close)
