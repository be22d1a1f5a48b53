"""Packs: requests that are painted together, and what becomes of one that fails. Imports no torch.

Company changes how sums are rounded, and so the last bits of some pixels. Whoever wants the same pixels again must ask for
the same packs, in the same order within each; then it does not matter which were painted before, or by whom.
"""

from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from kandinsky22.request import Request
from kandinsky22.request.events import Backend, Result

K = TypeVar("K", bound=Hashable)
TRIES = 3


@dataclass(frozen=True, slots=True)
class Finished(Generic[K]):
    """A request that was carried out, its share of the seconds its pack took, and the process that did it."""

    key: K
    result: Result
    seconds: float
    worker: int


@dataclass(frozen=True, slots=True)
class Failure(Generic[K]):
    """A request that was given up: what went wrong last, in a sentence, and how often it was tried."""

    key: K
    error: str
    tries: int


Outcome = Finished[K] | Failure[K]


@dataclass(frozen=True, slots=True)
class Pack(Generic[K]):
    """Requests to be painted together, in order, and how often they have been tried."""

    requests: Mapping[K, Request]
    tries: int = 0

    def failed(self, error: str) -> "tuple[list[Pack[K]], list[Failure[K]]]":
        """What to do next, and what was given up.

        A pack is tried once more as it is: what went wrong may have nothing to do with it, and then no pixel differs. Its
        last try is each request's own, so that one that cannot be painted costs nobody else a picture.
        """
        tries = self.tries + 1
        if tries == TRIES:
            return [], [Failure(key, error, tries) for key in self.requests]
        if tries < TRIES - 1:
            return [replace(self, tries=tries)], []
        return [Pack({key: request}, tries) for key, request in self.requests.items()], []


def cut(requests: Iterable[tuple[K, Request]], most: int) -> Iterator[Pack[K]]:
    """Packs of up to `most` requests of one size each, in the order in which they are full; what is left comes last."""
    open_packs: dict[object, dict[K, Request]] = {}
    for key, request in requests:
        size = (request.height, request.width, request.aspect)
        pack = open_packs.setdefault(size, {})
        pack[key] = request
        if len(pack) == most:
            yield Pack(open_packs.pop(size))
    yield from map(Pack, open_packs.values())


@runtime_checkable
class Painter(Backend, Protocol):
    """A backend that paints packs, as many at a time as it has processes."""

    batch: int  # requests that a pack should have
    processes: int

    def about(self, request: Request) -> tuple[Request, dict[str, Any]]:
        """The request resolved, and what else decides its pixels (see `Kandinsky.made_by`)."""
        ...

    def paint(self, packs: Iterable[Pack[K]]) -> Generator[Outcome[K], None, None]:
        """Carry out packs, and yield what came of every request, as packs are done. Closing it cancels."""
        ...


def finished(pack: Pack[K], results: Mapping[K, Result], seconds: float, worker: int) -> list[Outcome[K]]:
    """What came of a pack that went well."""
    return [Finished(key, results[key], seconds / len(results), worker) for key in pack.requests]


def sentence(error: BaseException) -> str:
    """What an error says, on one line; errors that are not meant for people are named."""
    said = " ".join(str(error).split())
    return said if isinstance(error, ValueError | FloatingPointError) else f"{type(error).__name__}: {said}"
