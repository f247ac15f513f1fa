"""The service on Ray Serve: engine replicas, the fronts before them, and our choice between the two.

Ray Serve starts the replicas on nodes that have the CPUs or GPUs, adds and removes them by their queues' length, asks
for their health and replaces those that fail, replaces them a few at a time when the application is deployed anew, and
lets each finish what it is doing before it goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Any, TypeAlias

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Gauge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmserve.config import Limits
from mmserve.deploy.calls import Call, Piece, Whole
from mmserve.deploy.cluster import Cluster, connected
from mmserve.deploy.fleet import Fleet
from mmserve.deploy.front import create_front
from mmserve.deploy.replica import Answering
from mmserve.deploy.router import PLACE
from mmserve.errors import ConfigError, EngineUnavailable, MMServeError, QueueFull
from mmserve.trim import trim_often
from web.app import create_app
from web.service import Service

log = logging.getLogger(__name__)

Build: TypeAlias = "Callable[[], AbstractAsyncContextManager[Service]]"
"""Makes the service in a replica's process, and closes it there; it is sent to that process, so it must pickle."""

METRICS_SECONDS = 5.0
_ALL_SECONDS = 30.0


class Engine:
    """A replica: one engine, and the whole HTTP application over it."""

    async def __init__(self, build: Build) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        trim_often()
        context = serve.get_replica_context()
        self._place = context.rank.rank
        self._stack = AsyncExitStack()
        self._service = await self._stack.enter_async_context(build())
        self._answering = Answering(create_app(self._service), context.replica_id.unique_id)
        self._watch = asyncio.create_task(_tell_ray(self._service))

    async def answer(self, call: Call) -> AsyncGenerator[Piece, None]:
        async for piece in self._answering.answer(call):
            yield piece

    async def whole(self, call: Call) -> Whole:
        return await self._answering.whole(call)

    def record_replica_metadata(self) -> dict[str, Any]:
        """What the router knows of this replica."""
        return {PLACE: self._place}

    def check_health(self) -> None:
        """Raises where the engine has ended; Ray Serve then replaces this replica."""
        if not self._service.engine.ready:
            raise EngineUnavailable("the engine has ended")

    async def __del__(self) -> None:
        if hasattr(self, "_watch"):
            self._watch.cancel()
        if hasattr(self, "_stack"):
            await self._stack.aclose()


async def _tell_ray(service: Service) -> None:
    """The engine's counters and gauges as Ray's metrics ``mmserve_…``, labelled by Ray with the replica."""
    gauges: dict[str, Gauge] = {}
    while True:
        for name, value in service.engine.stats().items():
            if name not in gauges:
                gauges[name] = Gauge(f"mmserve_{name}", description=f"The engine's {name.replace('_', ' ')}.")
            gauges[name].set(value)
        await asyncio.sleep(METRICS_SECONDS)


class RayReplicas:
    """The engines' deployment as :class:`~mmserve.deploy.calls.Replicas`."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._stream = handle.options(method_name="answer", stream=True)

    async def answer(self, call: Call, /) -> AsyncGenerator[Piece, None]:
        pieces = self._stream.remote(call)
        ended = False
        try:
            with _typed():
                async for piece in pieces:
                    yield piece
            ended = True
        finally:
            if not ended:
                pieces.cancel()

    async def ask_all(self, call: Call, /) -> list[Whole]:
        with _typed():
            response = self._handle.broadcast("whole", call)
            answers = await response.results_async(timeout_s=_ALL_SECONDS, return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, Whole)]  # not of those that die meanwhile


@contextmanager
def _typed() -> Iterator[None]:
    """Ray's errors as ours. What the application itself raised is a fault, and stays one."""
    try:
        yield
    except MMServeError:
        raise
    except BackPressureError as error:
        raise QueueFull("all replicas are busy and as many requests wait as may; try again later") from error
    except (RayServeException, RayError) as error:
        log.warning("a replica was lost: %s: %s", type(error).__name__, str(error)[:500])
        raise EngineUnavailable("the replica that worked on this request was lost; ask again") from error


def unnamed(app: ASGIApp) -> ASGIApp:
    """``app`` without the header ``X-Request-Id`` on its responses: Ray Serve's proxy, which gave the request its id,
    adds that one itself, and the client would read it twice."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [header for header in message["headers"] if header[0].lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, without_id)

    return call


@serve.ingress()
class Entrance:
    """A front: takes HTTP requests and hands them to the engines. Loads no torch."""

    def __init__(self, engines: DeploymentHandle[Any], limits: Limits, idle_seconds: float) -> None:
        self._parts = (engines, limits, idle_seconds)

    def __serve_build_asgi_app__(self) -> Any:
        engines, limits, idle_seconds = self._parts
        return unnamed(create_front(RayReplicas(engines), limits, idle_seconds=idle_seconds))


def application(
    build: Build, fleet: Fleet, limits: Limits, *, idle_seconds: float = 30.0, environment: Mapping[str, str] = {}
) -> serve.Application:
    """What ``serve.run`` takes. ``environment`` are variables of the replicas' processes."""
    router = RequestRouterConfig(
        request_router_class=fleet.router,
        request_router_kwargs={"balance": fleet.bound.balance, "spare": fleet.bound.spare},
    )
    many: dict[str, Any] = {"num_replicas": fleet.least}
    if fleet.least < fleet.most:
        many = {"autoscaling_config": _scaling(fleet)}
    actor: dict[str, Any] = {"num_cpus": fleet.cpus, "num_gpus": fleet.gpus}
    if environment:
        actor["runtime_env"] = {"env_vars": dict(environment)}
    engines = serve.deployment(
        Engine,
        name="engine",
        ray_actor_options=actor,
        max_ongoing_requests=fleet.most_requests,
        max_queued_requests=fleet.most_waiting,
        health_check_period_s=fleet.health_seconds,
        health_check_timeout_s=max(10.0, 2 * fleet.health_seconds),
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=fleet.drain_seconds,
        request_router_config=router,
        **many,
    )
    front = serve.deployment(
        Entrance,
        name="front",
        num_replicas=fleet.fronts,
        ray_actor_options={"num_cpus": fleet.front_cpus},
        max_ongoing_requests=10 * fleet.most_waiting,
        graceful_shutdown_timeout_s=fleet.drain_seconds,
    )
    return front.bind(engines.bind(build), limits, idle_seconds)


def _scaling(fleet: Fleet) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=fleet.least,
        max_replicas=fleet.most,
        target_ongoing_requests=fleet.target_requests,
        upscale_delay_s=fleet.up_seconds,
        downscale_delay_s=fleet.down_seconds,
        look_back_period_s=fleet.look_back_seconds,
    )


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
def serving(cluster: Cluster) -> Iterator[Running]:
    """A connection until the block ends, and Ray Serve with it where Ray was started here. Raises ConfigError."""
    with connected(cluster):
        try:
            yield Running(cluster)
        finally:
            if cluster.address is None:
                serve.shutdown()
