"""Work units in this process, painted by a model or by any other backend. Imports no torch itself."""

import os
import time
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar, runtime_checkable

from kandinsky22.backends.work_units import Outcome, WorkUnit, error_message
from kandinsky22.request import Request
from kandinsky22.request.events import Backend, Event, Result

K = TypeVar("K", bound=Hashable)


@runtime_checkable
class SupportsStreamMany(Protocol):
    """A backend that paints several requests as one batch, as `Kandinsky` does."""

    def stream_many(self, requests: Mapping[K, Request]) -> Iterator[tuple[K, Event]]: ...


@runtime_checkable
class SupportsDescribe(Protocol):
    """A backend that resolves and describes a request without painting it, as `Kandinsky` does."""

    def resolved(self, request: Request) -> Request: ...

    def made_by(self, request: Request) -> dict[str, Any]: ...


@runtime_checkable
class CachesEmbeddings(Protocol):
    """A backend that caches the embeddings of texts between requests, as `Kandinsky` does."""

    embedder: Any


class Local:
    """Paints work units with a backend in this process, one after the other.

    batch: requests that a unit should have. Raises `ValueError` where it is above 1 and the backend paints only one
    request at a time.
    """

    processes = 1

    def __init__(self, backend: Backend, batch: int = 1) -> None:
        if batch < 1 or (batch > 1 and not isinstance(backend, SupportsStreamMany)):
            raise ValueError(f"batch must be 1 for a backend that paints one request at a time, got {batch}")
        self.backend, self.batch = backend, batch

    def stream(self, request: Request) -> Iterator[Event]:
        """The events of one request."""
        return self.backend.stream(request)

    def describe(self, request: Request) -> tuple[Request, dict[str, Any]]:
        """The resolved request, and what else decides its pixels.

        A backend without `SupportsDescribe` paints one picture to find out.
        """
        if isinstance(self.backend, SupportsDescribe):
            resolved = self.backend.resolved(request)
            return resolved, self.backend.describe(resolved)
        result = self._results({0: request})[0]
        return result.request, result.pictures[0].made_by

    def stream_unit(self, requests: Mapping[K, Request]) -> Iterator[tuple[K, Event]]:
        """The events of a work unit, each with the key of its request.

        The embedding cache is bypassed meanwhile: the last bits of an embedding depend on the batch in which it was
        computed.
        """
        with self.backend.embedder.uncached() if isinstance(self.backend, CachesEmbeddings) else nullcontext():
            if isinstance(self.backend, SupportsStreamMany):
                yield from self.backend.stream_many(requests)
            else:
                for key, request in requests.items():
                    yield from ((key, event) for event in self.backend.stream(request))

    def paint(self, units: Iterable[WorkUnit[K]]) -> Generator[Outcome[K], None, None]:
        """Paint units one after the other; see `UnitBackend`."""
        for first in units:
            attempts = deque([first])
            while attempts:
                unit, start = attempts.popleft(), time.perf_counter()
                try:
                    results = self._results(unit.requests)
                except Exception as error:  # any error: it is recorded, and the other requests go on
                    retries, failures = unit.retry(error_message(error))
                    attempts += retries
                    yield from failures
                else:
                    yield from unit.finished(results, time.perf_counter() - start, os.getpid())

    def _results(self, requests: Mapping[K, Request]) -> dict[K, Result]:
        return {key: event for key, event in self.stream_unit(requests) if isinstance(event, Result)}
