"""Every error that mmserve raises on purpose.

::

    MMServeError
    ├── ConfigError                  what was asked of the process at start cannot be done
    │   └── CheckpointError          a model's files are missing, truncated or not what they say
    ├── RequestError                 the caller's input is at fault; says what to do about it
    │   ├── InvalidField             a field is missing, unknown or out of its range
    │   ├── PromptTooLong            the prompt and its answer do not fit the model's context
    │   ├── ModelNotFound            the named model is not served here
    │   ├── ResponseNotKept          the named response is not kept here, or not any more
    │   ├── FileNotKept              the named file is not kept here, or not any more
    │   ├── FileTooLarge             a file to be kept has more bytes than the limit
    │   ├── BatchNotFound            the named batch is not this caller's, or there is none
    │   ├── BatchEnded               the batch has ended, so that it cannot be cancelled
    │   ├── ConstraintError          what the answer should look like
    │   │   ├── InvalidConstraint    is not a well-formed schema, pattern or grammar, or too large
    │   │   ├── UnsupportedConstraint  cannot be enforced; names the keyword and its place
    │   │   └── BudgetTooSmall       cannot be said in max_tokens; names the least that can
    │   ├── PictureError             a picture cannot be used
    │   │   ├── UnsupportedPicture   not a picture, or a format that is not accepted
    │   │   ├── CorruptPicture       a picture whose data is damaged
    │   │   ├── PictureTooLarge      more bytes or pixels than the limit
    │   │   ├── PictureNotKept       sent before, and not kept any more; send it again
    │   │   └── PictureNotFetched    a remote address that may not be asked, or gave no picture
    │   ├── TooManyPictures          more pictures than one request may carry
    │   ├── KeyRefused               no API key came, or one that is not known
    │   └── NotAllowed               the key is known, and may not do this
    ├── RequestCancelled             the caller went away or asked for the request to end
    ├── QueueFull                    too many requests wait; try again later
    │   └── RateLimited              more than this API key may ask for; try again later
    ├── StorageFull                  there is no room on the disk, or in what is set aside for files
    └── EngineUnavailable            the engine is loading, stopped or failed

An error crosses process and network boundaries as ``(code, message, param)`` and comes back as
the same class through :func:`from_wire`. ``web.errors`` maps classes to HTTP statuses.
"""

from __future__ import annotations

from typing import ClassVar, TypedDict


class WireError(TypedDict):
    """An error in the shape of OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str


class MMServeError(Exception):
    """Base of the tree. ``code`` names the class on the wire; ``param`` names the field at fault."""

    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def to_wire(self) -> WireError:
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}

    def __reduce__(self) -> tuple[object, ...]:
        return from_wire, (self.to_wire(),)


class ConfigError(MMServeError):
    code = "config_error"


class CheckpointError(ConfigError):
    code = "checkpoint_error"


class RequestError(MMServeError):
    code = "invalid_request"
    kind = "invalid_request_error"


class InvalidField(RequestError):
    code = "invalid_field"


class PromptTooLong(RequestError):
    code = "context_length_exceeded"


class ModelNotFound(RequestError):
    code = "model_not_found"


class ResponseNotKept(RequestError):
    code = "response_not_kept"


class FileNotKept(RequestError):
    code = "file_not_found"


class FileTooLarge(RequestError):
    code = "file_too_large"


class BatchNotFound(RequestError):
    code = "batch_not_found"


class BatchEnded(RequestError):
    code = "batch_ended"


class ConstraintError(RequestError):
    code = "constraint_error"


class InvalidConstraint(ConstraintError):
    code = "invalid_constraint"


class UnsupportedConstraint(ConstraintError):
    code = "unsupported_constraint"


class BudgetTooSmall(ConstraintError):
    code = "budget_too_small"


class PictureError(RequestError):
    code = "invalid_image"


class UnsupportedPicture(PictureError):
    code = "unsupported_image"


class CorruptPicture(PictureError):
    code = "corrupt_image"


class PictureTooLarge(PictureError):
    code = "image_too_large"


class PictureNotKept(PictureError):
    code = "image_not_kept"


class PictureNotFetched(PictureError):
    code = "image_not_fetched"


class TooManyPictures(RequestError):
    code = "too_many_images"


class KeyRefused(RequestError):
    code = "invalid_api_key"
    kind = "authentication_error"


class NotAllowed(RequestError):
    code = "not_allowed"
    kind = "permission_error"


class RequestCancelled(MMServeError):
    code = "request_cancelled"
    kind = "cancelled_error"


class QueueFull(MMServeError):
    code = "queue_full"
    kind = "rate_limit_error"


class RateLimited(QueueFull):
    """``retry_after`` is in seconds; it travels as the header ``Retry-After``. With ``hopeless`` waiting does not help,
    and ``X-Should-Retry: false`` says so, which OpenAI's clients know."""

    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float = 1.0, hopeless: bool = False
    ) -> None:
        super().__init__(message, param=param)
        self.retry_after = retry_after
        self.hopeless = hopeless


class StorageFull(MMServeError):
    code = "storage_full"


class EngineUnavailable(MMServeError):
    code = "engine_unavailable"
    kind = "unavailable_error"


def _classes(root: type[MMServeError]) -> dict[str, type[MMServeError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _classes(child)
    return found


def from_wire(wire: WireError) -> MMServeError:
    """The error that ``to_wire`` was called on; an unknown code becomes :class:`MMServeError`."""
    cls = _classes(MMServeError).get(wire["code"], MMServeError)
    return cls(wire["message"], param=wire["param"])
