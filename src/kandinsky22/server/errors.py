"""What goes wrong with an HTTP request, independent of the dialect that reports it."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy.exc import OperationalError

from kandinsky22.server.limits import CensoredError, QueueFullError, RefusedError, StorageFullError
from kandinsky22.server.store import ConflictError

Kind = Literal[
    "invalid",
    "unauthorized",
    "forbidden",
    "not found",
    "conflict",
    "too large",
    "busy",
    "hung up",
    "unavailable",
    "full",
    "internal",
]
STATUS: dict[Kind, int] = {
    "invalid": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not found": 404,
    "conflict": 409,
    "too large": 413,
    "busy": 429,
    "hung up": 499,  # nobody reads it; the log does
    "unavailable": 503,
    "full": 507,
    "internal": 500,
}


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is an error: its kind, one sentence, the parameter it is about, and the seconds to wait.

    censored: a content filter withholds the pictures.
    """

    kind: Kind
    message: str
    parameter: str | None = None
    retry_after: float | None = None
    censored: bool = False

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.kind]


def api_error_of(error: Exception) -> ApiError:
    """The answer for an error of the queue, of a task's function or of painting."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RefusedError):
        kind: Kind = "unavailable"
        if isinstance(error, QueueFullError):
            kind = "busy"
        elif isinstance(error, StorageFullError):
            kind = "full"
        return ApiError(kind, str(error), retry_after=error.retry_after)
    if isinstance(error, ConflictError):
        return ApiError("conflict", str(error))
    if isinstance(error, ValueError):
        return ApiError("invalid", str(error), censored=isinstance(error, CensoredError))
    if isinstance(error, OperationalError):  # a full disk, a folder that is not writable any more
        return ApiError("full", "the server cannot write to its data folder; its operator must make room")
    if isinstance(error, MemoryError):
        return ApiError("unavailable", str(error))
    return ApiError(
        "internal", str(error) if isinstance(error, FloatingPointError) else "the server failed; see its log"
    )
