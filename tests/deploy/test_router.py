"""Ray Serve's side of the choice, with replicas that exist in name only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="Ray is an extra; make cluster installs it and runs these")

from ray.serve._private.common import DeploymentID, ReplicaID, RequestMetadata
from ray.serve._private.request_router.common import ReplicaQueueLengthCache
from ray.serve.request_router import PendingRequest

from mmserve.deploy.calls import Call
from mmserve.deploy.router import PictureRouter
from mmserve.deploy.routing import Rendezvous

pytestmark = [pytest.mark.anyio, pytest.mark.ray]

KEY = b"a picture"


@dataclass(frozen=True)
class Replica:
    name: str
    place: int | None = None

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(self.name, DeploymentID("engine", "mmserve"))

    @property
    def replica_metadata(self) -> dict[str, Any]:
        return {} if self.place is None else {"place": self.place}


@dataclass
class Desk:
    """A router without a cluster."""

    router: PictureRouter = field(default_factory=lambda: PictureRouter.__new__(PictureRouter))

    def __post_init__(self) -> None:
        self.router._replica_queue_len_cache = ReplicaQueueLengthCache()
        self.router.initialize_state(balance=1.25, spare=1)

    def request(self, number: int, avoid: tuple[str, ...] = ()) -> PendingRequest:
        metadata = RequestMetadata(request_id=str(number), internal_request_id=str(number))
        return PendingRequest([Call({}, b"", KEY, avoid)], {}, metadata)

    async def choices(self, replicas: list[Replica], avoid: tuple[str, ...] = ()) -> list[str]:
        ranks = await self.router.choose_replicas(replicas, self.request(0, avoid))
        assert all(len(rank) == 1 for rank in ranks)
        return [replica.name for [replica] in ranks]


def order(places: str) -> list[str]:
    return Rendezvous(places).order(KEY)


THREE = [Replica("x", 0), Replica("y", 1), Replica("z", 2)]
NAMES = {"0": "x", "1": "y", "2": "z"}


async def test_the_order_is_that_of_the_places() -> None:
    assert await Desk().choices(THREE) == [NAMES[place] for place in order("012")]


async def test_who_takes_a_place_takes_its_keys() -> None:
    desk = Desk()
    before = await desk.choices(THREE)
    after = await desk.choices([Replica("new", 1) if replica.name == "y" else replica for replica in THREE])
    assert after == ["new" if name == "y" else name for name in before]


async def test_two_at_one_place_are_told_apart() -> None:
    assert sorted(await Desk().choices([Replica("x", 0), Replica("y", 0), Replica("z")])) == ["x", "y", "z"]


async def test_what_is_sent_and_what_replicas_tell_is_load() -> None:
    desk = Desk()
    first, second, third = await desk.choices(THREE)
    ids = {replica.name: replica.replica_id for replica in THREE}
    desk.router.on_request_routed(desk.request(1), ids[first], None)
    assert await desk.choices(THREE) == [second, third, first]
    desk.router.replica_queue_len_cache.update(ids[second], 3)  # another front's
    assert (await desk.choices(THREE))[-1] == second
    desk.router.on_request_completed(ids[first], "1")
    desk.router.replica_queue_len_cache.update(ids[second], 0)
    assert await desk.choices(THREE) == [first, second, third]
    desk.router.on_request_completed(ids[first], "never routed")


async def test_those_that_were_asked_come_last() -> None:
    desk = Desk()
    first, *others = await desk.choices(THREE)
    assert await desk.choices(THREE, avoid=(first,)) == [*others, first]


async def test_a_call_of_something_else_gets_a_replica_too() -> None:
    ranks = await Desk().router.choose_replicas(THREE, None)
    assert len(ranks) == 3
