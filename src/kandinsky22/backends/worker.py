"""One process of a pool: `run_worker` is what it runs, `Worker` is the pool's end of the pipe. Imports no torch.

A process has a batch that requests join while it paints, and a batch of its own for each work unit. It writes no file.
It exits between two steps when its pipe is closed, and at once when its parent process has died.
"""

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Hashable, Mapping
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, NamedTuple

from kandinsky22.backends.work_units import error_message
from kandinsky22.request import Request
from kandinsky22.request.events import BatchOfRequests, Event, Failed, Model, Preview, is_last
from kandinsky22.threads import let_threads_sleep

SPAWN = get_context("spawn")  # after a fork, locks of the parent's threads (torch has some) may stay locked for ever
STEP_TIMEOUT = 10.0  # seconds that a step of painting may take to end before the process is killed

LoadModel = Callable[[], Model]
"""Loads the model in the process that calls it. Must be picklable."""


Question = Literal["resolve", "describe", "embedding"]
"""A method of a model that takes a request."""


class Submit(NamedTuple):
    """To a worker: paint the requests of a job. together: as a batch of their own, a work unit."""

    job: int
    requests: Mapping[Any, Request]
    preview: Preview | None
    together: bool


class Cancel(NamedTuple):
    """To a worker: cancel a job."""

    job: int


class Ask(NamedTuple):
    """To a worker: call a method of the model with a request."""

    job: int
    method: Question
    request: Request


class Message(NamedTuple):
    """From a worker. "ready" and "broken", with the exception that loading raised, are about the process.

    About a job: "event" with (key, event), of an `Ask` "answer" with the value or the exception, and "cancelled" when
    the step in which it was cancelled has ended.
    """

    kind: Literal["ready", "broken", "event", "answer", "cancelled"]
    job: int = 0
    content: Any = None


Order = Submit | Cancel | Ask
Pipe = Connection  # of orders to the worker, and of messages from it


def run_worker(load: LoadModel, pipe: "Connection[Message, Order]") -> None:
    """Load the model, then carry out orders until the pipe is closed."""
    let_threads_sleep()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent process decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
    # A thread reads, so that neither end waits for the other to read while both are writing.
    threading.Thread(target=_receive, args=(pipe, orders), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        carry_out(load, orders, pipe.send)
    os._exit(0)  # there is nothing to clean up, and for torch that takes seconds


def carry_out(load: LoadModel, orders: "queue.SimpleQueue[Order | None]", send: Callable[[Message], object]) -> None:
    """Load the model, then carry out orders until there is a None. send: sends a message to the pool."""
    try:
        model = load()
    except Exception as error:
        send(Message("broken", content=as_plain_error(error)))
        return
    send(Message("ready"))
    _Painter(model, send).run(orders)


def as_plain_error(error: Exception) -> Exception:
    """An error with the same message, of a built-in type that every process can unpickle."""
    kind = next((kind for kind in (ValueError, FloatingPointError) if isinstance(error, kind)), RuntimeError)
    return kind(error_message(error))


def _receive(pipe: "Connection[Message, Order]", orders: "queue.SimpleQueue[Order | None]") -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            orders.put(pipe.recv())
    orders.put(None)


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class _Painter:
    """The batches of a worker process. Their keys are (job, key)."""

    def __init__(self, model: Model, send: Callable[[Message], object]) -> None:
        self.model, self.send = model, send
        self.joined: BatchOfRequests[Any] = model.batch()
        self.units: dict[int, BatchOfRequests[Any]] = {}
        self.jobs: dict[int, set[Hashable]] = {}  # the requests of each job that are not finished

    def run(self, orders: "queue.SimpleQueue[Order | None]") -> None:
        """Carry out orders until there is a None."""
        while True:
            with contextlib.suppress(queue.Empty):
                while (order := orders.get(block=not (self.units or len(self.joined)))) is not None:
                    self._carry_out(order)
                return
            self._step(self.joined)
            for job, unit in list(self.units.items())[:1]:  # one unit after the other
                self._step(unit)
                if job not in self.jobs:
                    self.units.pop(job).close()

    def _carry_out(self, order: Order) -> None:
        if isinstance(order, Submit):
            self.jobs[order.job] = set(order.requests)
            batch = self.joined
            if order.together:
                batch = self.units[order.job] = self.model.batch(together=True)
            for key, request in order.requests.items():
                try:
                    batch.submit((order.job, key), request, order.preview)
                except Exception as error:
                    self._send((order.job, key), failed(error))
        elif isinstance(order, Cancel):
            batch = self.units.pop(order.job, self.joined)
            for key in self.jobs.pop(order.job, ()):
                batch.cancel((order.job, key))
            if batch is not self.joined:
                batch.close()
            self.send(Message("cancelled", order.job))
        else:
            try:
                answer = getattr(self.model, order.method)(order.request)
            except Exception as error:
                answer = as_plain_error(error)
            self.send(Message("answer", order.job, answer))

    def _step(self, batch: BatchOfRequests[Any]) -> None:
        for key, event in batch.step() if len(batch) else ():
            self._send(key, event)

    def _send(self, key: tuple[int, Hashable], event: Event) -> None:
        job, of_job = key
        if job in self.jobs:  # it may have been cancelled
            self.send(Message("event", job, (of_job, event)))
            if is_last(event):
                self.jobs[job].discard(of_job)
                if not self.jobs[job]:
                    del self.jobs[job]


def failed(error: Exception) -> Failed:
    """The event of a request that failed with an error."""
    reasons = {ValueError: "refused", FloatingPointError: "not finite", MemoryError: "out of memory"}
    reason: Any = next((reason for kind, reason in reasons.items() if isinstance(error, kind)), "error")
    return Failed(reason, error_message(error))


class Worker:
    """The pool's end of a process. For the pool's own thread."""

    def __init__(self, load: LoadModel) -> None:
        self._load = load
        self.is_ready, self.failed_starts = False, 0
        self.start()

    def start(self) -> None:
        """Start the process, after the first one has ended."""
        self.pipe, worker_end = SPAWN.Pipe()
        self._process = SPAWN.Process(target=run_worker, args=(self._load, worker_end), daemon=True)
        self._process.start()
        worker_end.close()
        self.is_ready = False

    def send(self, order: Order) -> None:
        """Send an order. That the process has died shows when its pipe is read."""
        with contextlib.suppress(OSError):
            self.pipe.send(order)

    def end(self, timeout: float = STEP_TIMEOUT) -> str:
        """Close the pipe, and kill the process if it does not exit within `timeout` seconds; returns how it ended."""
        if self.pipe.closed:
            return "closed"
        self.pipe.close()
        self._process.join(timeout if self.is_ready else 0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode or 0
        self._process.close()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"
