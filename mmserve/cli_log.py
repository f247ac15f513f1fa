"""How a process logs: text for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

_TEXT = "%(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: ``time`` (RFC 3339, UTC), ``level``, ``logger``; a record's ``fields`` attribute as
    fields of the object, where it has one, else its text as ``message``; and ``exception``, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, object] = {"time": when, "level": record.levelname.lower(), "logger": record.name}
        fields = getattr(record, "fields", None)
        line |= fields if isinstance(fields, dict) else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(level: str, style: str = "text", stream: TextIO | None = None) -> None:
    """Log to ``stream`` (stderr) from ``level`` on, as ``style`` says: ``"text"`` or ``"json"``."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if level != "debug":  # a line for each request of a client of ours says nothing new
        logging.getLogger("httpx").setLevel(logging.WARNING)
        # It warns of every broken body, which callers can send without end; they are told, and the access log counts.
        logging.getLogger("python_multipart").setLevel(logging.ERROR)
