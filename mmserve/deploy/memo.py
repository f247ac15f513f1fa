"""Under which key things were sent that later requests only name: kept pictures, and responses."""

from __future__ import annotations

import json
from collections import OrderedDict

_NAMING = frozenset({"/v1/pictures", "/v1/responses"})


class Memo:
    """Names -> keys, the last ``size`` of them. A hint: without it the replicas are asked one after the other."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._keys: OrderedDict[str, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, name: str) -> bytes | None:
        return self._keys.get(name)

    def names(self, path: str) -> bool:
        """Whether an answer of this route names what later requests may refer to."""
        return path in _NAMING

    def learn(self, body: bytes, key: bytes) -> None:
        """Note what an answer in JSON calls the things that were sent under ``key``."""
        try:
            answer = json.loads(body)
        except ValueError:
            return
        if not isinstance(answer, dict):
            return
        data = answer.get("data")
        for each in (answer, *(data if isinstance(data, list) else ())):
            if isinstance(each, dict) and isinstance(each.get("id"), str):
                self._keys[each["id"]] = key
                self._keys.move_to_end(each["id"])
        while len(self._keys) > self._size:
            self._keys.popitem(last=False)
