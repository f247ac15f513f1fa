"""Cached work that is each key's own: the key goes into every cache salt, below all routes."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence

from mmserve.engine.client import EngineClient
from mmserve.types import Message, Prompt, Request, TokenEvent
from web.service import PromptBuilder, Service
from web.visit import visit


def owned(service: Service) -> Service:
    """``service`` with caches apart for each key, or each group of keys. Its shelf is a new one.

    How fast an answer begins, and its ``cached_tokens``, tell whether somebody asked the same before: that is why keys
    share nothing unless they are said to.
    """
    return dataclasses.replace(service, prompts=_Prompts(service.prompts), engine=_Engine(service.engine))


class _Prompts:
    def __init__(self, inner: PromptBuilder) -> None:
        self._inner = inner

    def build(self, messages: Sequence[Message], *, cache_salt: str = "", add_generation_prompt: bool = True) -> Prompt:
        salt = visit().cache_root + cache_salt
        return self._inner.build(messages, cache_salt=salt, add_generation_prompt=add_generation_prompt)

    def append_text(self, prompt: Prompt, text: str, *, end: bool = False) -> Prompt:
        return self._inner.append_text(prompt, text, end=end)

    def append_choices(
        self, prompt: Prompt, opening: str, choices: Sequence[str], *, end: bool = False
    ) -> tuple[list[Prompt], int]:
        return self._inner.append_choices(prompt, opening, choices, end=end)

    def build_text(self, text: str, pictures: Sequence[bytes], *, cache_salt: str = "") -> Prompt:
        return self._inner.build_text(text, pictures, cache_salt=visit().cache_root + cache_salt)

    def build_ids(self, ids: Sequence[int], pictures: Sequence[bytes], *, cache_salt: str = "") -> Prompt:
        return self._inner.build_ids(ids, pictures, cache_salt=visit().cache_root + cache_salt)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return self._inner.decode(ids, special=special)

    def token_bytes(self, token_id: int) -> bytes:
        return self._inner.token_bytes(token_id)


class _Engine:
    def __init__(self, inner: EngineClient) -> None:
        self._inner = inner

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        salt = visit().cache_root + request.cache_salt
        return self._inner.generate(dataclasses.replace(request, cache_salt=salt))

    @property
    def ready(self) -> bool:
        return self._inner.ready

    def stats(self) -> Mapping[str, float]:
        return self._inner.stats()

    async def flush(self) -> int:
        return await self._inner.flush()

    async def close(self) -> None:
        await self._inner.close()
