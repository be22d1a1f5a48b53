"""This machine's processes as one backend: each has the model, and they paint packs side by side. Imports no torch.

A process that dies, by whatever signal, is started again, and what it was painting is tried again (see `Pack.failed`). The
same packs give the same pixels however many processes there are, if each has as many threads.
"""

import contextlib
import os
import queue
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kandinsky22.backends.work_units import TRIES, Outcome, Pack, finished
from kandinsky22.backends.worker import About, Job, Load, Pictures, Worker
from kandinsky22.request import Request
from kandinsky22.request.events import Event, Notice, Started

if TYPE_CHECKING:
    from kandinsky22.engine.kandinsky import Kandinsky

K = TypeVar("K", bound=Hashable)


def cores() -> int:
    """Of the processor, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Loading:
    """How a process makes its model: `Kandinsky.load` with so many threads. What is fetched should have been before."""

    model: str
    device: str | None = None
    dtype: str | None = None
    threads: int = 1
    request: Request | None = None

    def __call__(self) -> "Kandinsky":
        """The model. torch arrives here."""
        import torch

        from kandinsky22.engine.kandinsky import Kandinsky

        torch.set_num_threads(self.threads)
        return Kandinsky.load(self.model, device=self.device, dtype=self.dtype, request=self.request)


class Pool:
    """Processes that each have a model. Closing it ends them; so does the end of this process, even by kill -9.

    load: makes the model, in each process. batch: requests of a pack. Raises `ValueError` for less than one of either. Any
    number of threads may ask it at once; one that finds no process free waits for one.
    """

    def __init__(self, load: Load, *, processes: int, batch: int = 1) -> None:
        for name, number in (("processes", processes), ("batch", batch)):
            if number < 1:
                raise ValueError(f"{name} must be a whole number from 1 up, got {number!r}")
        self.processes, self.batch = processes, batch
        self._closed = False
        self._workers = [Worker(load) for _ in range(processes)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)

    @classmethod
    def of(
        cls,
        model: str,
        *,
        processes: int,
        batch: int = 1,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        request: Request | None = None,
    ) -> Self:
        """Processes with a model each, of a published one what `request` needs, and as many threads (None: the cores are shared
        out)."""
        threads = threads or max(1, cores() // max(1, processes))
        return cls(Loading(model, device, dtype, threads, request), processes=processes, batch=batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        self._closed = True
        for worker in self._workers:
            worker.close()

    def stream(self, request: Request) -> Iterator[Event]:
        """Carry out one request. If its process dies, that is a notice and it begins anew; the third time it is a
        `ChildProcessError`. Progress has no previews."""
        results, _ = yield from self._asked(Pictures({0: request}, told=True))
        yield results[0]

    def about(self, request: Request) -> tuple[Request, dict[str, Any]]:
        """The request resolved, and what else decides its pixels."""
        asked = self._asked(About(request))
        while True:
            try:
                next(asked)
            except StopIteration as end:
                known: tuple[Request, dict[str, Any]] = end.value
                return known

    def paint(self, packs: Iterable[Pack[K]]) -> Generator[Outcome[K], None, None]:
        """Carry out packs on all processes that are free; see `Painter`. They are asked for as processes get free."""
        with self._taken(self.processes) as workers:
            coming, again = iter(packs), deque[Pack[K]]()
            painting: dict[Worker, Pack[K]] = {}
            outcomes: list[Outcome[K]] = []
            while True:
                for worker in workers:
                    if worker not in painting and (pack := again.popleft() if again else next(coming, None)):
                        worker.begin(Pictures(pack.requests))
                        painting[worker] = pack
                yield from outcomes  # whatever becomes of them, the processes are at work
                if not painting:
                    return
                outcomes = []
                speaking = wait([worker.pipe for worker in painting])
                for worker in [worker for worker in painting if worker.pipe in speaking]:
                    process, answer = worker.process, worker.hear()
                    if answer.what == "done":
                        results, seconds = answer.content
                        outcomes += finished(painting.pop(worker), results, seconds, process)
                    elif answer.last:
                        tries, given_up = painting.pop(worker).failed(str(answer.content))
                        again += tries
                        outcomes += given_up

    def _asked(self, job: Job) -> Generator[Event, None, Any]:
        """Have one process carry out a job, and tell of its events; returns what came of it."""
        with self._taken(1) as (worker,):
            for left in reversed(range(TRIES)):
                worker.begin(job)
                while not (answer := worker.hear()).last:
                    if isinstance(answer.content, Started):  # what is drawn is drawn once, even if it begins anew
                        job = Pictures({0: answer.content.request}, told=True)
                    if answer.what == "event":
                        yield answer.content
                if answer.what == "done":
                    return answer.content
                if answer.what == "failed":
                    raise answer.content
                if left:
                    yield Notice(f"{answer.content}; it begins anew")
            raise ChildProcessError(f"{answer.content}, {TRIES} times")

    @contextlib.contextmanager
    def _taken(self, most: int) -> Iterator[list[Worker]]:
        """Up to so many processes that have nothing to do, at least one. Afterwards they have nothing to do again."""
        if self._closed:
            raise ValueError("this pool is closed; open another")
        taken = [self._free.get()]
        with contextlib.suppress(queue.Empty):
            while len(taken) < most:
                taken.append(self._free.get_nowait())
        try:
            yield taken
        finally:
            for worker in taken:
                worker.cancel()
                self._free.put(worker)
