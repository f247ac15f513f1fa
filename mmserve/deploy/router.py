"""Our choice of a replica as Ray Serve's request router; it runs in every process that calls the engines."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from mmserve.deploy.calls import Call
from mmserve.deploy.routing import Bound, Rendezvous

PLACE = "place"
"""The entry of a replica's metadata that says which place among the replicas it has taken."""


class PictureRouter(RequestRouter):  # type: ignore[misc]  # Ray is untyped to those who do without it
    """Ranks the replicas for a :class:`Call` by ``routing``; Ray Serve sends it to the first that accepts it.

    A replica is known by its place, so one that is started where another died takes over that one's keys and no others.
    A replica's load is what it last told of (which counts other callers' requests too), or what was sent to it from
    here if that is more.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """``request_router_kwargs``: ``balance`` and ``spare`` of :class:`Bound`."""
        self._bound = Bound(**kwargs)
        self._known: frozenset[ReplicaID] = frozenset()
        self._rendezvous = Rendezvous(())
        self._by_name: dict[str, ReplicaID] = {}
        self._sent: dict[ReplicaID, set[str]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        here = {replica.replica_id: replica for replica in candidate_replicas}
        if here.keys() != self._known:
            self._learn(here)
        call = pending_request.args[0] if pending_request is not None and pending_request.args else None
        key, avoid = (call.key, set(call.avoid)) if isinstance(call, Call) else (b"", set())
        loads = {name: self._load(replica) for name, replica in self._by_name.items()}
        avoided = [name for name, replica in self._by_name.items() if replica.unique_id in avoid]
        if pending_request is not None:
            # All replicas are on the list: when the last of them is full, wait a little before the next round.
            pending_request.routing_context.should_backoff = True
        return [[here[self._by_name[name]]] for name in self._rendezvous.choices(key, loads, self._bound, avoided)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:  # noqa: ARG002
        self._sent.setdefault(replica_id, set()).add(pending_request.metadata.internal_request_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._sent.get(replica_id, set()).discard(internal_request_id)

    def _load(self, replica: ReplicaID) -> int:
        return max(len(self._sent.get(replica, ())), self.replica_queue_len_cache.get(replica) or 0)

    def _learn(self, replicas: dict[ReplicaID, RunningReplica]) -> None:
        places = {replica: str(about.replica_metadata.get(PLACE, "")) for replica, about in replicas.items()}
        shared = Counter(places.values())
        # Places are given anew when replicas leave, and for a moment two may say the same one.
        named = {
            place if place and shared[place] == 1 else f"{place}/{replica.unique_id}": replica
            for replica, place in places.items()
        }
        self._known = frozenset(replicas)
        self._by_name = named
        self._rendezvous = Rendezvous(named)
        self._sent = {replica: sent for replica, sent in self._sent.items() if replica in replicas}
