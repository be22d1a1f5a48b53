"""The events of a running request, and the protocol of what carries requests out. Imports no torch.

Events are values; `backends.event_json` writes and reads them as JSON.
"""

from collections.abc import Generator, Hashable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from kandinsky22.request.request import Request

if TYPE_CHECKING:
    from kandinsky22.imaging.images import Painting
    from kandinsky22.request.embedding import Embedding

K = TypeVar("K", bound=Hashable)
Stage = Literal["prior", "decoder"]
Reason = Literal["refused", "censored", "not finite", "out of memory", "error"]
"""Why a request failed: it cannot be carried out as it is; a server's content filter withholds the pictures; a result
was not finite; memory ran out; anything else."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A wish for small pictures of the first picture's current state: with every `every`-th step of the decoder, and
    the last; of at most `side` pixels a side. Raises `ValueError` for numbers below 1."""

    every: int = 1
    side: int = 256

    def __post_init__(self) -> None:
        if self.every < 1 or self.side < 1:
            raise ValueError(f"a preview needs whole numbers from 1 up, got every {self.every!r}, side {self.side!r}")


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits until others have finished. position: how many wait before it."""

    position: int


@dataclass(frozen=True, slots=True)
class Started:
    """The resolved request, sent before the first network runs. process: the id of the process that paints it."""

    request: Request
    process: int


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning for the user, in one sentence; the request continues."""

    text: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Step `i` of `n` of a stage is done. preview: a small PNG of the first picture's current state, if asked for."""

    stage: Stage
    i: int
    n: int
    preview: bytes | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The finished pictures, the resolved request, and the seconds it took since it started. The last event."""

    pictures: "list[Painting]"
    request: Request
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The request cannot be carried out. reason: the kind of error. error: what it is, in one sentence. Last event."""

    reason: Reason
    error: str

    def exception(self) -> Exception:
        """The exception for callers that want one."""
        kinds: dict[Reason, type[Exception]] = {
            "refused": ValueError,
            "censored": ValueError,
            "not finite": FloatingPointError,
            "out of memory": MemoryError,
            "error": RuntimeError,
        }
        return kinds[self.reason](self.error)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The request was cancelled. The last event."""


Event: TypeAlias = Queued | Started | Notice | Progress | Result | Failed | Cancelled


def is_last(event: Event) -> bool:
    """Whether no event of the request follows."""
    return isinstance(event, Result | Failed | Cancelled)


class BatchOfRequests(Protocol[K]):
    """Requests that are carried out side by side and join and leave meanwhile; see `engine.batch.Batch`."""

    def __len__(self) -> int:
        """Requests whose last event has not been returned yet."""
        ...

    def submit(self, key: K, request: Request, preview: Preview | None = None) -> object:
        """Add a request. Raises `ValueError` for one that cannot be carried out."""
        ...

    def cancel(self, key: K) -> None:
        """Remove a request, if it is there."""
        ...

    def step(self) -> list[tuple[K, "Event"]]:
        """Do a little work, and return what happened."""
        ...

    def close(self) -> None:
        """Cancel everything."""
        ...


class Model(Protocol):
    """What a process of a pool has: `Kandinsky`."""

    def batch(self, *, together: bool = False) -> BatchOfRequests[Any]:
        """An empty batch; together: as for `Backend.stream_many`."""
        ...

    def resolve(self, request: Request) -> Request:
        """As for `Backend`."""
        ...

    def describe(self, request: Request) -> dict[str, Any]:
        """As for `Backend`."""
        ...

    def embedding(self, request: Request) -> "Embedding":
        """The image embedding of a resolved request's first picture."""
        ...


class Backend(Protocol):
    """Carries requests out: `Kandinsky` in this process, or one of the classes in `kandinsky22.backends`."""

    def stream_many(
        self, requests: Mapping[K, Request], preview: Preview | None = None, *, together: bool = False
    ) -> Generator[tuple[K, Event], None, None]:
        """Carry requests out side by side and yield their events by key; the last of each is a `Result`, `Failed` or
        `Cancelled`. Closing the generator cancels what has not finished.

        together: as one fixed batch, in one process, with nothing taken from a cache: the same bytes wherever and
        whenever it is done. Otherwise each request gets the picture that it gets alone, up to rounding.
        """
        ...

    def resolve(self, request: Request) -> Request:
        """The request with every open field filled in. Raises `ValueError` for what cannot be carried out."""
        ...

    def describe(self, request: Request) -> dict[str, Any]:
        """What decides the pixels of a resolved request besides the request: weights, versions, dtype, device."""
        ...


def stream(backend: Backend, request: Request, preview: Preview | None = None) -> Generator[Event, None, None]:
    """The events of one request; the last is its `Result`. Closing the generator cancels it.

    Raises the exception of a `Failed` event (see `Failed.exception`).
    """
    with closing(backend.stream_many({0: request}, preview)) as events:
        for _, event in events:
            if isinstance(event, Failed):
                raise event.exception()
            yield event
