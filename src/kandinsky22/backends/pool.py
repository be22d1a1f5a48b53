"""Several processes of this machine as one backend; each has the model, and they paint side by side. Imports no torch.

Requests go to the process with the fewest pictures and join what it paints. A process that dies, by any signal, is
started again, and its requests begin again: at most three times, and by themselves, so that one that kills processes
does not cost others their picture. The same work units give the same pixels however many processes there are, if each
has the same number of threads.
"""

import contextlib
import itertools
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar

from kandinsky22.backends.work_units import TRIES
from kandinsky22.backends.worker import STEP_TIMEOUT, Ask, Cancel, LoadModel, Message, Question, Submit, Worker
from kandinsky22.request import Embedding, Request
from kandinsky22.request.events import Cancelled, Event, Failed, Notice, Preview, is_last, stream

if TYPE_CHECKING:
    from kandinsky22.engine.kandinsky import Kandinsky

K = TypeVar("K", bound=Hashable)
CLOSED = "this pool is closed; open another"
CAPACITY = 16  # pictures that a process has at a time; it paints about as many at once


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
    request: Request | Sequence[Request] | None = None

    def __call__(self) -> "Kandinsky":
        """The model. Imports torch."""
        import torch

        from kandinsky22.engine.kandinsky import Kandinsky

        torch.set_num_threads(self.threads)
        return Kandinsky.load(self.model, device=self.device, dtype=self.dtype, request=self.request)


@dataclass(eq=False)
class _Call:
    """What one caller waits for: events by key, the answer to a question, or an exception to raise."""

    inbox: "queue.SimpleQueue[Any]" = field(default_factory=queue.SimpleQueue)


class _Cancel(NamedTuple):
    """Cancels the jobs of a call: those with this request, or all."""

    call: _Call
    keys: Collection[Hashable] | None = None


@dataclass(eq=False)
class _Job:
    """What one process carries out of a call: a request, the requests of a work unit, or a question.

    left: the keys of its requests that are not finished; empty once it was cancelled, while its process still ends a
    step for it. tries: how often a process died with it.
    """

    call: _Call
    order: Submit | Ask
    left: set[Hashable]
    tries: int = 0

    @property
    def alone(self) -> bool:
        """Whether it needs a process by itself."""
        return (isinstance(self.order, Submit) and self.order.together) or self.tries > 0

    @property
    def pictures(self) -> int:
        """How many pictures it paints."""
        return sum(r.num_images for r in self.order.requests.values()) if isinstance(self.order, Submit) else 0


class Session(Generic[K]):
    """Requests of one caller that a pool carries out; more may be submitted at any time, by any thread.

    Where a process cannot be started, `receive` raises what loading the model raised, or `ChildProcessError`.
    """

    def __init__(self, pool: "Pool") -> None:
        self._pool, self._call = pool, _Call()

    def submit(self, key: K, request: Request, preview: Preview | None = None) -> None:
        """Add a request. Raises `ValueError` if the pool is closed."""
        self._pool._submit(self._call, {key: request}, preview)

    def cancel(self, key: K) -> None:
        """Cancel a request; no event of it is received after a `Cancelled`."""
        self._cancel((key,))

    def receive(self) -> tuple[K, Event]:
        """Wait for the next event; the last of each request is a `Result`, `Failed` or `Cancelled`."""
        item = self._call.inbox.get()
        if isinstance(item, Exception):
            raise item
        received: tuple[K, Event] = item
        return received

    def close(self) -> None:
        """Cancel everything."""
        self._cancel(None)

    def _cancel(self, keys: Collection[Hashable] | None) -> None:
        with contextlib.suppress(ValueError):  # the pool is closed, so nothing is left to cancel
            self._pool._send_command(_Cancel(self._call, keys))


class Questions(ABC):
    """What other processes answer about requests."""

    def resolve(self, request: Request) -> Request:
        """The request with every open field filled in. Raises `ValueError` for what cannot be carried out."""
        resolved: Request = self._ask("resolve", request)
        return resolved

    def describe(self, request: Request) -> dict[str, Any]:
        """What decides the pixels of a resolved request besides the request."""
        described: dict[str, Any] = self._ask("describe", request)
        return described

    def embedding(self, request: Request) -> Embedding:
        """The image embedding of a resolved request's first picture."""
        embedding: Embedding = self._ask("embedding", request)
        return embedding

    @abstractmethod
    def _ask(self, method: Question, request: Request) -> Any:
        """What a method of a model returns. Raises what it raises."""


class Pool(Questions):
    """Processes that each have a model. They end when it is closed, and when this process ends, even by kill -9.

    load: loads the model, in each process. start: starts a process that does so. Raises `ValueError` for less than one
    process. Any number of threads may use it at once.
    """

    def __init__(self, load: LoadModel, *, processes: int, start: Callable[[LoadModel], Worker] = Worker) -> None:
        if processes < 1:
            raise ValueError(f"processes must be a whole number from 1 up, got {processes!r}")
        self.processes = processes
        self._numbers = itertools.count()
        self._commands: queue.SimpleQueue[_Job | _Cancel] = queue.SimpleQueue()
        self._waiting: deque[_Job] = deque()
        self._jobs: dict[Worker, dict[int, _Job]] = {start(load): {} for _ in range(processes)}
        self._wake_up_read, self._wake_up_write = os.pipe()
        self._closed, self._open = False, threading.Lock()  # no command is sent after it was closed
        self._end_timeout = STEP_TIMEOUT
        self._thread = threading.Thread(target=self._run, name="kandinsky22-pool", daemon=True)
        self._thread.start()

    @classmethod
    def of(
        cls,
        model: str,
        *,
        processes: int,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        request: Request | Sequence[Request] | None = None,
    ) -> Self:
        """A pool whose processes each load `model`; of a published one, the networks that `request` needs.

        threads: of each process; None divides the cores among them.
        """
        threads = threads or max(1, cores() // max(1, processes))
        return cls(LoadKandinsky(model, device, dtype, threads, request), processes=processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, timeout: float = STEP_TIMEOUT) -> None:
        """End all processes; what callers still wait for raises `ValueError`.

        timeout: the seconds that a step of painting may take to end before its process is killed.
        """
        with self._open:
            if self._closed:
                return
            self._closed, self._end_timeout = True, timeout
            os.write(self._wake_up_write, b"!")
        self._thread.join()
        os.close(self._wake_up_write)

    def stream(self, request: Request, preview: Preview | None = None) -> Generator[Event, None, None]:
        """The events of one request; see `request.events.stream`."""
        return stream(self, request, preview)

    def stream_many(
        self, requests: Mapping[K, Request], preview: Preview | None = None, *, together: bool = False
    ) -> Generator[tuple[K, Event], None, None]:
        """See `request.events.Backend`. Raises what loading the model raised, or `ChildProcessError`."""
        session: Session[K] = Session(self)
        for group in [requests] if together and requests else [{key: request} for key, request in requests.items()]:
            self._submit(session._call, group, preview, together=together)
        left = set(requests)
        try:
            while left:
                key, event = session.receive()
                if is_last(event):
                    left.discard(key)
                yield key, event
        finally:
            if left:
                session.close()

    def session(self) -> Session[Any]:
        """Requests that are submitted one by one, and whose events are received together."""
        return Session(self)

    def _submit(
        self, call: _Call, requests: Mapping[K, Request], preview: Preview | None, *, together: bool = False
    ) -> None:
        order = Submit(next(self._numbers), dict(requests), preview, together)
        self._send_command(_Job(call, order, set(requests)))

    def _ask(self, method: Question, request: Request) -> Any:
        call = _Call()
        self._send_command(_Job(call, Ask(next(self._numbers), method, request), {None}))
        answer = call.inbox.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _send_command(self, command: _Job | _Cancel) -> None:
        with self._open:
            if self._closed:
                raise ValueError(CLOSED)
            self._commands.put(command)
            os.write(self._wake_up_write, b"!")

    # The pool's thread; nothing below is called by another one.

    def _run(self) -> None:
        while not self._closed:
            pipes = {worker.pipe: worker for worker in self._jobs if not worker.pipe.closed}
            for ready in wait([*pipes, self._wake_up_read]):
                if isinstance(ready, int):
                    os.read(ready, 4096)
                    self._take_commands()
                else:
                    self._receive(pipes[ready])  # type: ignore[index]  # a pipe
            self._assign()
        self._take_commands()
        jobs = [*self._waiting, *(job for its in self._jobs.values() for job in its.values())]
        for call in {job.call for job in jobs}:
            call.inbox.put(ValueError(CLOSED))
        for worker in self._jobs:
            worker.end(self._end_timeout)
        os.close(self._wake_up_read)

    def _take_commands(self) -> None:
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Cancel):
                self._cancel(command)
            elif isinstance(command.order, Ask):  # short, beside what is painted
                self._waiting.appendleft(command)
            else:
                self._waiting.append(command)

    def _cancel(self, cancel: _Cancel) -> None:
        def is_meant(job: _Job) -> bool:
            return job.call is cancel.call and (cancel.keys is None or not job.left.isdisjoint(cancel.keys))

        cancelled = [job for job in self._waiting if is_meant(job)]
        self._waiting = deque(job for job in self._waiting if not is_meant(job))
        for worker, jobs in self._jobs.items():
            for job in filter(is_meant, jobs.values()):
                cancelled.append(job)
                worker.send(Cancel(job.order.job))
        for job in cancelled:
            for key in job.left:
                job.call.inbox.put((key, Cancelled()))
            job.left.clear()

    def _assign(self) -> None:
        """Give waiting jobs, in order, to the processes with the fewest pictures, as far as there is room.

        A question is answered between two steps, whatever is painted.
        """
        while self._waiting:
            job = self._waiting[0]
            asks = isinstance(job.order, Ask)
            load = {
                worker: sum(other.pictures for other in jobs.values())
                for worker, jobs in self._jobs.items()
                if not (jobs if job.alone else not asks and any(other.alone for other in jobs.values()))
            }
            worker = min(load, key=lambda worker: load[worker], default=None)
            if worker is None or (not asks and load[worker] and load[worker] + job.pictures > CAPACITY):
                return
            self._waiting.popleft()
            self._jobs[worker][job.order.job] = job
            if worker.pipe.closed:
                worker.start()
            worker.send(job.order)

    def _receive(self, worker: Worker) -> None:
        try:
            message: Message = worker.pipe.recv()
        except (EOFError, OSError):  # the process died, between two messages or within one
            self._handle_death(worker)
            return
        if message.kind == "ready":
            worker.is_ready, worker.failed_starts = True, 0
        elif message.kind == "broken":
            worker.end()
            self._fail_all(worker, message.content)
        elif message.kind == "cancelled":
            self._jobs[worker].pop(message.job, None)
        elif job := self._jobs[worker].get(message.job):
            if message.kind == "answer":
                job.left.clear()
            else:
                key, event = message.content
                if key not in job.left:  # cancelled; or a work unit begins again as a whole, also what had finished
                    return
                if is_last(event):
                    job.left.remove(key)
            if not job.left:
                del self._jobs[worker][message.job]
            job.call.inbox.put(message.content)

    def _handle_death(self, worker: Worker) -> None:
        was_ready = worker.is_ready
        how = worker.end()
        jobs = [job for job in self._jobs[worker].values() if job.left]
        self._jobs[worker] = {job.order.job: job for job in jobs}
        if not was_ready:
            worker.failed_starts += 1
            if worker.failed_starts == TRIES:
                worker.failed_starts = 0
                text = f"a process died {TRIES} times while it loaded the model ({how}); is there enough memory?"
                self._fail_all(worker, ChildProcessError(text))
                return
            worker.start()
            for job in jobs:
                worker.send(job.order)
            return
        self._jobs[worker].clear()
        error = f"the process that painted it died ({how})"
        for job in reversed(jobs):
            job.tries += 1
            if job.tries < TRIES:
                self._waiting.appendleft(job)
            if isinstance(job.order, Submit):
                text = f"{error}; the request starts again"
                event = Notice(text) if job.tries < TRIES else Failed("error", f"{error}, {TRIES} times")
                for key in job.left:
                    job.call.inbox.put((key, event))
            elif job.tries == TRIES:
                job.call.inbox.put(ChildProcessError(f"{error}, {TRIES} times"))
        worker.start()

    def _fail_all(self, worker: Worker, error: Exception) -> None:
        """Raise an error in every caller that waits for a process that cannot be started, or for any."""
        for job in [*self._jobs[worker].values(), *self._waiting]:
            job.call.inbox.put(error)
        self._jobs[worker].clear()
        self._waiting.clear()
