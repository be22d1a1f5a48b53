"""Work units: requests that are painted as one batch, and the rule for retrying a unit that fails. Imports no torch.

The size of a batch changes how sums are rounded, and so the last bits of some pixels. The same work units, with the
same requests in the same order, give the same pixels again; it does not matter in which order units are painted, or by
which process.
"""

from collections.abc import Generator, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from kandinsky22.request import Request
from kandinsky22.request.events import Backend, Result

K = TypeVar("K", bound=Hashable)
TRIES = 3


@dataclass(frozen=True, slots=True)
class Finished(Generic[K]):
    """A request that was painted. seconds: its share of the time its work unit took. worker: the id of the process."""

    key: K
    result: Result
    seconds: float
    worker: int


@dataclass(frozen=True, slots=True)
class Failure(Generic[K]):
    """A request that was given up. error: the last error, in one sentence. tries: how often it was attempted."""

    key: K
    error: str
    tries: int


Outcome = Finished[K] | Failure[K]


@dataclass(frozen=True, slots=True)
class WorkUnit(Generic[K]):
    """Requests to be painted as one batch, in order, and how often they have been tried."""

    requests: Mapping[K, Request]
    tries: int = 0

    def retry(self, error: str) -> "tuple[list[WorkUnit[K]], list[Failure[K]]]":
        """The units to try next after this one failed, and the requests that are given up.

        The second try repeats the whole unit: the error may have had another cause, and then no pixel changes. The
        third and last try paints each request alone, so that one that cannot be painted does not cost the others their
        picture.
        """
        tries = self.tries + 1
        if tries == TRIES:
            return [], [Failure(key, error, tries) for key in self.requests]
        if tries < TRIES - 1:
            return [replace(self, tries=tries)], []
        return [WorkUnit({key: request}, tries) for key, request in self.requests.items()], []

    def finished(self, results: Mapping[K, Result], seconds: float, worker: int) -> list[Outcome[K]]:
        """The outcomes of a unit that succeeded in so many seconds, in the order of its requests."""
        return [Finished(key, results[key], seconds / len(results), worker) for key in self.requests]


@runtime_checkable
class UnitBackend(Backend, Protocol):
    """A backend that paints work units, as many at a time as it has processes; `batch` requests are a unit."""

    batch: int
    processes: int

    def describe(self, request: Request) -> tuple[Request, dict[str, Any]]:
        """The resolved request, and what else decides its pixels (see `Kandinsky.made_by`)."""
        ...

    def paint(self, units: Iterable[WorkUnit[K]]) -> Generator[Outcome[K], None, None]:
        """Paint units, and yield the outcome of every request as units end. Closing the generator cancels."""
        ...


def error_message(error: BaseException) -> str:
    """An error's message on one line; the error's type is named unless the message was written for users."""
    message = " ".join(str(error).split())
    return message if isinstance(error, ValueError | FloatingPointError) else f"{type(error).__name__}: {message}"
