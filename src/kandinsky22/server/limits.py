"""What a server does not accept: limits of requests, of the queue and of space, and the errors that say so."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kandinsky22.request import Request
from kandinsky22.request.events import Failed
from kandinsky22.server.store import Store


class RefusedError(Exception):
    """A request that is not accepted now. retry_after: seconds, None if it makes no sense to try again."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFullError(RefusedError):
    """Too many jobs wait, of everybody or of this key."""


class StorageFullError(RefusedError):
    """There is no space for more pictures."""


class StoppingError(RefusedError):
    """The server is about to stop."""


class CensoredError(ValueError):
    """The content filter withholds the pictures."""


def exception_of(failed: Failed) -> Exception:
    """The exception for a request that failed: `CensoredError`, or as `Failed.exception` says."""
    return CensoredError(failed.error) if failed.reason == "censored" else failed.exception()


@dataclass(frozen=True, slots=True)
class Limits:
    """waiting: jobs of everybody that may wait. running: pictures that are painted at a time. max_pixels: of a picture.
    max_bytes: of everything stored, None: no limit but free_bytes, which stay free on the disk. max_seconds: the age at
    which pictures without a star are deleted, None: never."""

    waiting: int = 64
    running: int = 16
    max_pixels: int = 2048 * 2048
    max_pictures: int = 16
    max_bytes: int | None = None
    max_seconds: float | None = None
    free_bytes: int = 200 << 20

    def check(self, request: Request) -> None:
        """Raises `ValueError` for a resolved request that is larger than allowed."""
        if (request.height or 0) * (request.width or 0) > self.max_pixels:
            side = int(self.max_pixels**0.5)
            raise ValueError(f"this server paints pictures of at most {side}x{side} pixels; ask for a smaller size")
        if request.num_images > self.max_pictures:
            raise ValueError(f"this server paints at most {self.max_pictures} pictures per request; ask for fewer")


def free_bytes(folder: Path) -> int:
    """The bytes that are free on the disk of a folder."""
    return shutil.disk_usage(folder).free


def make_space(store: Store, limits: Limits, needed: int, free: Callable[[Path], int] = free_bytes) -> None:
    """Delete what is old, and raise `StorageFullError` if so many bytes more cannot be stored even then.

    free: returns the bytes that are free on the disk of a folder.
    """
    if limits.max_seconds is not None or limits.max_bytes is not None:
        most = None if limits.max_bytes is None else limits.max_bytes - needed
        store.prune(max_bytes=most, max_seconds=limits.max_seconds)
        if most is not None and store.bytes_used() > most:
            raise StorageFullError("the server's space for pictures is full; delete pictures, or take their stars")
    if free(store.folder) < limits.free_bytes + needed:
        raise StorageFullError("the server's disk is full; its operator must make room")


def bytes_of(request: Request) -> int:
    """At most so many bytes are needed to store the pictures of a resolved request."""
    return 4 * request.num_images * (request.height or 0) * (request.width or 0)


def cost_of(request: Request) -> float:
    """What a resolved request costs, for fairness: megapixels times steps times pictures."""
    pixels = (request.height or 0) * (request.width or 0)
    return pixels / 1e6 * (request.decoder.steps or 1) * request.num_images
