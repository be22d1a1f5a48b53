"""Work units: requests that are painted as one fixed batch, and the rule for trying again. Imports no torch.

The size of a batch changes how sums are rounded, and so the last bits of some pixels. The same work units, with the
same requests in the same order, give the same pixels again; it does not matter in which order units are painted, or by
which process.
"""

import threading
import time
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from kandinsky22.request import Request
from kandinsky22.request.events import Backend, Failed, Result, Started

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

    def retry(self, errors: Mapping[K, str]) -> "tuple[list[WorkUnit[K]], list[Failure[K]]]":
        """The units to try next for the requests that failed, and the requests that are given up.

        Where all failed, the second try repeats the whole unit: the error may have had another cause, and then no pixel
        changes. Otherwise each request is tried alone.
        """
        tries = self.tries + 1
        if tries == TRIES:
            return [], [Failure(key, error, tries) for key, error in errors.items()]
        if tries < TRIES - 1 and len(errors) == len(self.requests):
            return [replace(self, tries=tries)], []
        return [WorkUnit({key: self.requests[key]}, tries) for key in errors], []


@dataclass(frozen=True, slots=True)
class UnitPainter:
    """Paints work units with a backend. batch: requests that a unit should have. processes: units at a time.

    Raises `ValueError` for numbers below 1.
    """

    backend: Backend
    batch: int = 1
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("batch", "processes"):
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be a whole number from 1 up, got {number!r}")

    def paint(self, units: Iterable[WorkUnit[K]]) -> Generator[Outcome[K], None, None]:
        """Paint units, and yield the outcome of every request as units end.

        `units` is advanced as processes become free. Closing the generator cancels.
        """
        retries: deque[WorkUnit[K]] = deque()
        if self.processes == 1:  # in this thread, which may be the only one that may use the backend
            for first in units:
                retries.append(first)
                while retries:
                    outcomes, again = self._paint(retries.popleft(), threading.Event())
                    retries += again
                    yield from outcomes
            return
        stop, new = threading.Event(), iter(units)
        with ThreadPoolExecutor(self.processes) as threads:
            running: set[Future[tuple[list[Outcome[K]], list[WorkUnit[K]]]]] = set()
            try:
                while True:
                    while len(running) < self.processes and (unit := retries.popleft() if retries else next(new, None)):
                        running.add(threads.submit(self._paint, unit, stop))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        outcomes, again = future.result()
                        retries += again
                        yield from outcomes
            finally:
                stop.set()

    def _paint(self, unit: WorkUnit[K], stop: threading.Event) -> tuple[list[Outcome[K]], list[WorkUnit[K]]]:
        """The outcomes of a unit, and the units to try next. stop: cancels it."""
        start, worker = time.perf_counter(), 0
        results: dict[K, Result] = {}
        errors: dict[K, str] = {}
        try:
            with closing(self.backend.stream_many(unit.requests, together=True)) as events:
                for key, event in events:
                    if stop.is_set():
                        return [], []
                    if isinstance(event, Started):
                        worker = event.process
                    elif isinstance(event, Result):
                        results[key] = event
                    elif isinstance(event, Failed):
                        errors[key] = event.error
        except Exception as error:  # any error: it is recorded, and the other requests go on
            results, errors = {}, dict.fromkeys(unit.requests, error_message(error))
        seconds = (time.perf_counter() - start) / len(unit.requests)
        again, failures = unit.retry(errors) if errors else ([], [])
        finished = [Finished(key, results[key], seconds, worker) for key in unit.requests if key in results]
        return [*finished, *failures], again


def error_message(error: BaseException) -> str:
    """An error's message on one line; the error's type is named unless the message was written for users."""
    message = " ".join(str(error).split())
    is_for_users = isinstance(error, ValueError | FloatingPointError | MemoryError | ChildProcessError)
    return message if is_for_users else f"{type(error).__name__}: {message}"
