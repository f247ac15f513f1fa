"""Where a server keeps files and batches, and its options for them."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from mmserve.cli import build_parser
from mmserve.cli_batches import batch_service_of, state_folder
from mmserve.config import BatchLimits
from mmserve.errors import ConfigError
from web.batches.service import BatchService

pytestmark = pytest.mark.anyio

URL = "http://127.0.0.1:8123"


async def opened(*options: str, url: str = URL) -> tuple[Path, BatchLimits]:
    """The folder of a server with these options, which has ended, and its limits."""
    arguments = build_parser().parse_args(["serve", "--port", "8123", *options])
    async with batch_service_of(arguments, url) as batch_service:
        assert (batch_service._folder / "ledger.sqlite3").exists()
        return batch_service._folder, batch_service.limits


async def test_a_folder_that_was_named(tmp_path: Path) -> None:
    folder, limits = await opened("--data-folder", str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert limits == BatchLimits()
    assert folder.stat().st_mode & 0o777 == 0o700


async def test_the_default_is_the_port_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert (await opened())[0] == state_folder(os.environ, "linux") / "8123" == tmp_path / "mmserve" / "8123"
    assert (await opened())[0].exists()


async def test_a_port_that_is_another_each_time_has_a_folder_that_goes(caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = await opened("--port", "0")
    assert not folder.exists()
    assert "are lost when this server ends" in caplog.text


async def test_a_default_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    other = await asyncio.to_thread(BatchService, tmp_path / "mmserve" / "8123")
    folder, _ = await opened()
    await other.close()
    assert not folder.exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "another server" in caplog.text


async def test_a_named_folder_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be used"):
        await opened("--data-folder", str(tmp_path / "file"))
    (tmp_path / "ledger.sqlite3").write_text("this is no database" * 100)
    with pytest.raises(ConfigError, match="ledger"):
        await opened("--data-folder", str(tmp_path))


async def test_limits(tmp_path: Path) -> None:
    options = [
        "--max-file-bytes",
        "1",
        "--max-data-bytes",
        "2",
        "--max-batch-requests",
        "3",
        "--batch-concurrency",
        "4",
    ]
    _, limits = await opened("--data-folder", str(tmp_path), *options)
    assert limits == BatchLimits(max_file_bytes=1, max_data_bytes=2, max_batch_requests=3, concurrency=4)
    for flag in options[::2]:
        with pytest.raises(ConfigError, match=flag):
            await opened("--data-folder", str(tmp_path), flag, "0")


def test_state_folders_of_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    assert state_folder({}, "linux") == Path("/home/a/.local/state/mmserve")
    assert state_folder({"XDG_STATE_HOME": "relative"}, "linux") == Path("/home/a/.local/state/mmserve")
    assert state_folder({}, "darwin") == Path("/home/a/Library/Application Support/mmserve")
    assert state_folder({"LOCALAPPDATA": "/c"}, "win32") == Path("/c/mmserve")
