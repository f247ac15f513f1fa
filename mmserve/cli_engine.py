"""Where a command's engine runs: in its own process, or in one beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from mmserve.checkpoint import Checkpoint
from mmserve.cli_log import configure_logging
from mmserve.config import EngineConfig, Limits

if TYPE_CHECKING:
    from mmserve.engine.client import EngineClient
    from mmserve.prompt import PromptBuilder


@dataclass(frozen=True, slots=True)
class Parts:
    """A loaded model: its engine, which the holder closes, and what makes its prompts. ``max_model_len`` is in
    tokens."""

    engine: EngineClient
    prompts: PromptBuilder
    max_model_len: int


Load: TypeAlias = Callable[[Checkpoint, EngineConfig, Limits], Awaitable[Parts]]
"""Loads a model. Raises ``ConfigError`` and ``CheckpointError``."""


async def load_here(checkpoint: Checkpoint, config: EngineConfig, limits: Limits) -> Parts:
    """The engine in a thread of this process, which loads torch."""

    def build() -> Parts:
        from mmserve.engine.build import build_engine
        from mmserve.engine.local import LocalEngineClient
        from mmserve.prompt import PromptBuilder

        prompts = PromptBuilder(checkpoint, limits)
        engine = build_engine(checkpoint, config)
        return Parts(LocalEngineClient(engine, max_queue=limits.max_queue), prompts, engine.max_model_len)

    return await asyncio.to_thread(build)


def load_apart(*, watchdog_seconds: float, log_level: str, log_format: str) -> Load:
    """The engine in a supervised process beside this one, which logs as this one does and has torch to itself.

    A model of the general path is the exception: what makes its prompts is transformers' own processor.
    """

    async def load(checkpoint: Checkpoint, config: EngineConfig, limits: Limits) -> Parts:
        from mmserve.engine.process.client import ProcessEngineClient
        from mmserve.engine.process.recipe import BuildEngine, Recipe
        from mmserve.prompt import PromptBuilder

        recipe = Recipe(BuildEngine(checkpoint, config), partial(configure_logging, log_level, log_format))
        start = ProcessEngineClient.start(recipe, max_queue=limits.max_queue, watchdog_seconds=watchdog_seconds)
        starting = asyncio.create_task(start)
        try:
            prompts = await asyncio.to_thread(PromptBuilder, checkpoint, limits)  # while the other loads
            client = await starting
        except BaseException:
            starting.cancel()
            [started] = await asyncio.gather(starting, return_exceptions=True)
            if isinstance(started, ProcessEngineClient):
                await started.close()
            raise
        return Parts(client, prompts, client.max_model_len)

    return load
