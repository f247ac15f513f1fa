"""OpenAI's expiration policies: when a file goes by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from mmserve.errors import InvalidField
from web.errors import explain


class ExpiresAfter(BaseModel):
    """So many seconds after the file was made: one hour to thirty days."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


@dataclass(frozen=True, slots=True)
class FileExpiry:
    """What the caller asked for; ``None`` is nothing."""

    seconds: int | None

    def expires_at(self, purpose: str, now: float, kept_seconds: int) -> int | None:
        """The Unix time when a file goes. A batch's input does in any case; other files are kept until deleted."""
        if self.seconds is not None:
            return int(now) + self.seconds
        return int(now) + kept_seconds if purpose == "batch" else None


def expiry_of_form(fields: Mapping[str, str]) -> FileExpiry:
    """From ``expires_after[anchor]`` and ``expires_after[seconds]``. Raises ``InvalidField``."""
    names = {"anchor": "expires_after[anchor]", "seconds": "expires_after[seconds]"}
    given = {name: fields[spelled] for name, spelled in names.items() if spelled in fields}
    if not given:
        return FileExpiry(None)
    try:
        return FileExpiry(ExpiresAfter.model_validate(given).seconds)
    except ValidationError as error:
        plain = explain(error.errors())
        raise InvalidField(f"expires_after: {plain.message}", param="expires_after") from None
