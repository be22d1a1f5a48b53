"""Several processes of this machine as one backend; each has the model, and they paint side by side. Imports no torch.

A process that dies, by any signal, is started again, and its work is retried (see `WorkUnit.retry`). The same work
units give the same pixels however many processes there are, if each has the same number of threads.
"""

import contextlib
import os
import queue
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kandinsky22.backends.work_units import TRIES, Outcome, WorkUnit
from kandinsky22.backends.worker import DescribeJob, Job, LoadBackend, PaintJob, Worker
from kandinsky22.generators import drain
from kandinsky22.request import Request
from kandinsky22.request.events import Event, Notice, Started

if TYPE_CHECKING:
    from kandinsky22.engine.kandinsky import Kandinsky

K = TypeVar("K", bound=Hashable)


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class LoadKandinsky:
    """Loads a model in a worker process, with `Kandinsky.load` and so many threads.

    A published model should be on this machine already: otherwise every process would download it.
    """

    model: str
    device: str | None = None
    dtype: str | None = None
    threads: int = 1
    request: Request | None = None

    def __call__(self) -> "Kandinsky":
        """The model. Imports torch."""
        import torch

        from kandinsky22.engine.kandinsky import Kandinsky

        torch.set_num_threads(self.threads)
        return Kandinsky.load(self.model, device=self.device, dtype=self.dtype, request=self.request)


class Pool:
    """Processes that each have a model. They end when it is closed, and when this process ends, even by kill -9.

    load: loads the model, in each process. batch: requests that a work unit should have. Raises `ValueError` for less
    than one process or request. Any number of threads may use it at once; while no process is free they wait.
    """

    def __init__(self, load: LoadBackend, *, processes: int, batch: int = 1) -> None:
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
        """A pool whose processes each load `model`; of a published one, the networks that `request` needs.

        threads: of each process; None divides the cores among them.
        """
        threads = threads or max(1, cores() // max(1, processes))
        return cls(LoadKandinsky(model, device, dtype, threads, request), processes=processes, batch=batch)

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
        """The events of one request, without previews.

        If its process dies, a notice says so and the request starts again with the same seed; the third death raises
        `ChildProcessError`.
        """
        results, _ = yield from self._run(PaintJob({0: request}, with_events=True))
        yield results[0]

    def describe(self, request: Request) -> tuple[Request, dict[str, Any]]:
        """The resolved request, and what else decides its pixels."""
        description: tuple[Request, dict[str, Any]] = drain(self._run(DescribeJob(request)))
        return description

    def paint(self, units: Iterable[WorkUnit[K]]) -> Generator[Outcome[K], None, None]:
        """Paint units on all processes that are free; see `UnitBackend`.

        `units` is advanced as processes become free.
        """
        with self._reserved(self.processes) as workers:
            new, retries = iter(units), deque[WorkUnit[K]]()
            running: dict[Worker, WorkUnit[K]] = {}
            outcomes: list[Outcome[K]] = []
            while True:
                for worker in workers:
                    if worker not in running and (unit := retries.popleft() if retries else next(new, None)):
                        worker.submit(PaintJob(unit.requests))
                        running[worker] = unit
                yield from outcomes  # after submitting, so that the processes work while the caller handles these
                if not running:
                    return
                outcomes = []
                ready = wait([worker.pipe for worker in running])
                for worker in [worker for worker in running if worker.pipe in ready]:
                    pid, message = worker.pid, worker.receive()
                    if message.kind == "done":
                        results, seconds = message.content
                        outcomes += running.pop(worker).finished(results, seconds, pid)
                    elif message.ends_job:
                        units_to_retry, failures = running.pop(worker).retry(str(message.content))
                        retries += units_to_retry
                        outcomes += failures

    def _run(self, job: Job) -> Generator[Event, None, Any]:
        """Have one process carry out a job: yields its events, and returns the content of its "done" message."""
        with self._reserved(1) as (worker,):
            for tries_left in reversed(range(TRIES)):
                worker.submit(job)
                while not (message := worker.receive()).ends_job:
                    if isinstance(message.content, Started):  # a random seed is drawn once: a retry uses the same one
                        job = PaintJob({0: message.content.request}, with_events=True)
                    if message.kind == "event":
                        yield message.content
                if message.kind == "done":
                    return message.content
                if message.kind == "failed":
                    raise message.content
                if tries_left:
                    yield Notice(f"{message.content}; the request starts again")
            raise ChildProcessError(f"{message.content}, {TRIES} times")

    @contextlib.contextmanager
    def _reserved(self, most: int) -> Iterator[list[Worker]]:
        """Up to `most` free workers, at least one; waits for the first.

        On exit their jobs are cancelled and they are free.
        """
        if self._closed:
            raise ValueError("this pool is closed; open another")
        workers = [self._free.get()]
        with contextlib.suppress(queue.Empty):
            while len(workers) < most:
                workers.append(self._free.get_nowait())
        try:
            yield workers
        finally:
            for worker in workers:
                worker.cancel()
                self._free.put(worker)
