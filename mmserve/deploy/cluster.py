"""A Ray that runs already, or one of our own for as long as it is needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray import serve

from mmserve.config import Limits
from mmserve.deploy.fleet import Fleet
from mmserve.deploy.ray_serve import Build, application
from mmserve.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where to run. ``address`` is a running Ray's; None starts one here, with an object store of ``store_bytes``."""

    address: str | None = None
    store_bytes: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    cpus: float | None = None
    """Of a Ray that is started here: what its actors may share, whatever the machine has."""


class Running:
    """A connection to a Ray; applications are put on it and taken away."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def up(
        self,
        name: str,
        build: Build,
        fleet: Fleet,
        limits: Limits,
        idle_seconds: float = 30.0,
        environment: Mapping[str, str] = {},
    ) -> str:
        """Put the service there, or replace the one of this name replica by replica; its URL, once it answers.

        Raises ConfigError where it cannot start: the replicas' logs have the cause.
        """
        host, port = self._cluster.host, self._cluster.port
        serve.start(http_options={"host": host, "port": port}, logging_config={"enable_access_log": False})
        wanted = application(build, fleet, limits, idle_seconds=idle_seconds, environment=environment)
        try:
            serve.run(wanted, name=name, logging_config={"enable_access_log": False})
        except RuntimeError as error:
            raise ConfigError(f"the replicas did not start: {error}") from error
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        return f"http://{shown}:{port}"

    def down(self, name: str) -> None:
        """Take it away; its replicas finish what they do."""
        serve.delete(name)


@contextmanager
def connected(cluster: Cluster) -> Iterator[Running]:
    """Raises ConfigError where no Ray runs at the address."""
    here = {"num_cpus": cluster.cpus, "object_store_memory": cluster.store_bytes, "include_dashboard": False}
    try:
        ray.init(
            address=cluster.address or "local",
            logging_level=logging.WARNING,
            log_to_driver=False,
            **({} if cluster.address else here),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"reach Ray at {cluster.address}" if cluster.address else "start Ray here"
        raise ConfigError(f"cannot {where}: {error}") from error
    try:
        yield Running(cluster)
    finally:
        if cluster.address is None:
            serve.shutdown()
        ray.shutdown()
