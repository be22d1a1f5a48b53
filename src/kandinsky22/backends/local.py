"""Packs in this process, by a model or by any other backend. Imports no torch of its own."""

import os
import time
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar, runtime_checkable

from kandinsky22.backends.work_units import Outcome, Pack, finished, sentence
from kandinsky22.request import Request
from kandinsky22.request.events import Backend, Event, Result

K = TypeVar("K", bound=Hashable)


@runtime_checkable
class Together(Protocol):
    """What a `Kandinsky` can do and other backends cannot: paint many requests together."""

    def stream_many(self, requests: Mapping[K, Request]) -> Iterator[tuple[K, Event]]: ...


@runtime_checkable
class Telling(Protocol):
    """What a `Kandinsky` can do and other backends cannot: say what it would paint, and with what."""

    def resolved(self, request: Request) -> Request: ...

    def made_by(self, request: Request) -> dict[str, Any]: ...


@runtime_checkable
class Remembering(Protocol):
    """What a `Kandinsky` does and other backends do not: remember the embeddings of texts."""

    embedder: Any


class Here:
    """A backend that paints packs one after the other. Raises `ValueError` for packs that `backend` cannot paint together."""

    processes = 1

    def __init__(self, backend: Backend, batch: int = 1) -> None:
        if batch < 1 or (batch > 1 and not isinstance(backend, Together)):
            raise ValueError(f"batch must be 1 for a backend that paints one request at a time, got {batch}")
        self.backend, self.batch = backend, batch

    def stream(self, request: Request) -> Iterator[Event]:
        """Carry out one request."""
        return self.backend.stream(request)

    def about(self, request: Request) -> tuple[Request, dict[str, Any]]:
        """The request resolved, and what else decides its pixels. A backend that cannot tell is asked for a picture."""
        if isinstance(self.backend, Telling):
            resolved = self.backend.resolved(request)
            return resolved, self.backend.made_by(resolved)
        result = self._results({0: request})[0]
        return result.request, result.pictures[0].made_by

    def stream_pack(self, requests: Mapping[K, Request]) -> Iterator[tuple[K, Event]]:
        """What happens while a pack is painted, by request. What is remembered of texts is put aside for as long: in which
        company an embedding was made shows in its last bits."""
        with self.backend.embedder.uncached() if isinstance(self.backend, Remembering) else nullcontext():
            if isinstance(self.backend, Together):
                yield from self.backend.stream_many(requests)
            else:
                for key, request in requests.items():
                    yield from ((key, event) for event in self.backend.stream(request))

    def paint(self, packs: Iterable[Pack[K]]) -> Generator[Outcome[K], None, None]:
        """Carry out packs, one after the other; see `Painter`."""
        for pack in packs:
            tries = deque([pack])
            while tries:
                tried, began = tries.popleft(), time.perf_counter()
                try:
                    results = self._results(tried.requests)
                except Exception as error:  # whatever it is, it is told, and costs nobody else a picture
                    again, given_up = tried.failed(sentence(error))
                    tries += again
                    yield from given_up
                else:
                    yield from finished(tried, results, time.perf_counter() - began, os.getpid())

    def _results(self, requests: Mapping[K, Request]) -> dict[K, Result]:
        return {key: event for key, event in self.stream_pack(requests) if isinstance(event, Result)}
