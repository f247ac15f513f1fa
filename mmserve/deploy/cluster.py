"""A Ray that runs already, or one of our own for as long as it is needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

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


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Ray until the block ends. Raises ConfigError where no Ray runs at the address."""
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
        yield
    finally:
        ray.shutdown()
