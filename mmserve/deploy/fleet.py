"""How many replicas, on what, and how they come and go."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmserve.deploy.routing import Bound
from mmserve.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Fleet:
    """The engines' replicas. Raises ``ConfigError`` for numbers that cannot be.

    ``least`` to ``most`` replicas run, each with ``cpus`` and ``gpus`` of its node (fractions share one). Ray adds
    replicas when for ``up_seconds`` each has had more than ``target_requests`` in flight on average, and takes some
    away after ``down_seconds`` of less. A replica takes ``most_requests`` at a time, the rest waits; beyond
    ``most_waiting`` requests are refused. One that leaves has ``drain_seconds`` for what it is doing; one that says no
    to a health check, asked every ``health_seconds``, is replaced. ``fronts`` take the HTTP requests. ``router`` is the
    import path of what chooses among the replicas, which is given ``bound``.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    target_requests: float = 16.0
    most_requests: int = 128
    most_waiting: int = 1024
    up_seconds: float = 10.0
    down_seconds: float = 120.0
    look_back_seconds: float = 15.0
    drain_seconds: float = 25.0
    health_seconds: float = 2.0
    fronts: int = 1
    front_cpus: float = 0.1
    bound: Bound = field(default_factory=Bound)
    router: str = "mmserve.deploy.router.PictureRouter"

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(f"there must be at least 1 replica and no fewer at most, not {self.least} to {self.most}")
        if self.cpus < 0 or self.gpus < 0 or self.cpus + self.gpus == 0:
            raise ConfigError("a replica needs some of a CPU or of a GPU")
        if self.fronts < 1:
            raise ConfigError(f"at least 1 front must take the requests, not {self.fronts}")
        if self.most_requests < 1 or self.most_waiting < 1 or self.target_requests <= 0:
            raise ConfigError("a replica must be allowed at least 1 request")
