"""Log lines as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from mmserve.cli_log import JsonFormatter, configure_logging


def line(record: logging.LogRecord) -> dict[str, object]:
    text = JsonFormatter().format(record)
    assert "\n" not in text
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("mmserve.x", logging.WARNING, "f.py", 1, message, args, None)
    vars(made).update(extra)
    return made


def test_a_message_is_an_object_of_one_line() -> None:
    found = line(record("two\n%s", "lines ü"))
    assert found["message"] == "two\nlines ü"
    assert (found["level"], found["logger"]) == ("warning", "mmserve.x")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(found["time"]))


def test_fields_stand_in_the_object() -> None:
    found = line(record("text", fields={"status": 200, "odd": object}))
    assert found["status"] == 200
    assert "message" not in found
    assert "object" in str(found["odd"])


def test_a_traceback_is_kept() -> None:
    try:
        raise ValueError("the cause")
    except ValueError:
        made = record("failed", exc_info=sys.exc_info())
    assert "ValueError: the cause" in str(line(made)["exception"])


@pytest.fixture
def loggers() -> Iterator[None]:
    """The levels that this process had."""
    names = ("httpx", "python_multipart")
    levels = [logging.getLogger(name).level for name in names]
    yield
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("loggers")
def test_a_broken_body_writes_nothing_into_the_log() -> None:
    """Each wrote a warning of the form parser's, so that whoever sends rubbish fills the log."""
    configure_logging("info")
    assert not logging.getLogger("python_multipart.multipart").isEnabledFor(logging.WARNING)
