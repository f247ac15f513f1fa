"""Logs are followed from threads and event loops, before, while and after they are written."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from mmserve.lang.log import Log


def test_readers_see_everything_whenever_they_come() -> None:
    log: Log[int] = Log()
    found: list[list[int]] = []
    readers = [threading.Thread(target=lambda: found.append(list(log))) for _ in range(3)]
    log.append(0)
    for reader in readers:
        reader.start()
    for i in range(1, 100):
        log.append(i)
    log.close()
    for reader in readers:
        reader.join(5)
    assert found == [list(range(100))] * 3
    assert list(log) == list(log.snapshot()) == list(range(100))


@pytest.mark.anyio
async def test_an_event_loop_follows_what_a_thread_writes() -> None:
    log: Log[int] = Log()

    def write() -> None:
        for i in range(50):
            log.append(i)
            time.sleep(0.0005)
        log.close()

    async def follow() -> list[int]:
        return [item async for item in log.follow()]

    writer = threading.Thread(target=write)
    followers = [asyncio.create_task(follow()) for _ in range(2)]
    await asyncio.sleep(0)
    writer.start()
    assert await asyncio.gather(*followers) == [list(range(50))] * 2
    assert await follow() == list(range(50))
    writer.join()


@pytest.mark.anyio
async def test_a_follower_that_leaves_is_forgotten() -> None:
    log: Log[int] = Log()
    log.append(1)
    following = log.follow()
    assert await anext(following) == 1
    assert len(log._wakers) == 1
    await following.aclose()
    assert not log._wakers


def test_a_follower_whose_loop_is_gone_does_not_hinder_the_writer() -> None:
    log: Log[int] = Log()
    log.append(0)

    async def leave() -> object:
        following = log.follow()
        await anext(following)
        return following

    loop = asyncio.new_event_loop()
    kept = loop.run_until_complete(leave())
    loop.close()
    log.append(1)
    log.close()
    assert list(log) == [0, 1]
    del kept
