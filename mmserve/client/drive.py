"""Carrying out flows (``mmserve.client.flow``) with ``httpx.AsyncClient``, for whoever has one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

from mmserve.client import flow

T = TypeVar("T")


async def carry_out(
    http: httpx.AsyncClient, steps: flow.Flow[T], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> T:
    """The flow's value. Raises what it raises, and ``httpx.RequestError`` that it does not handle."""
    try:
        step = next(steps)
        while True:
            try:
                result = await _take(http, step, sleep)
            except httpx.RequestError as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


async def _take(
    http: httpx.AsyncClient, step: flow.Step, sleep: Callable[[float], Awaitable[None]]
) -> httpx.Response | None:
    match step:
        case flow.Send(call):
            request = http.build_request(call.method, call.path, **call.body)
            return await http.send(request, stream=True)
        case flow.Read(response):
            try:
                await response.aread()
            finally:
                await response.aclose()
        case flow.Sleep(seconds):
            await sleep(seconds)
    return None
