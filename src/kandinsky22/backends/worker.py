"""One process of a pool, from both sides: `run_worker` runs in it, `Worker` is the pool's end of the pipe.

Imports no torch.

A worker receives jobs one at a time over a pipe and sends messages until the job ends. It writes no file. It exits
between two steps of painting when its pipe is closed, and at once when its parent process has died.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, NamedTuple

from kandinsky22.backends.local import Local
from kandinsky22.backends.work_units import TRIES, error_message
from kandinsky22.request import Request
from kandinsky22.request.events import Backend, Event, Progress, Result

SPAWN = get_context("spawn")  # after a fork, locks of the parent's threads (torch has some) may stay locked for ever
STEP_TIMEOUT = 10.0  # seconds that a step of painting may take to end before the process is killed

LoadBackend = Callable[[], Backend]
"""Loads the model in the process that calls it. Must be picklable."""


class PaintJob(NamedTuple):
    """A job: paint requests as one batch. with_events: of the one request, send all events, not only the result."""

    requests: Mapping[Any, Request]
    with_events: bool = False


class DescribeJob(NamedTuple):
    """A job: resolve a request, and say what else decides its pixels."""

    request: Request


Job = PaintJob | DescribeJob


class Message(NamedTuple):
    """A message from a worker.

    About a job: "event", then one of "done" with (results by key, seconds) or the description, "failed" with an
    exception, or "cancelled". About the process: "ready", "broken" with the exception that loading raised, or "died"
    with the reason.
    """

    kind: Literal["ready", "broken", "event", "done", "failed", "cancelled", "died"]
    content: Any = None

    @property
    def ends_job(self) -> bool:
        """Whether it is the last message of a job."""
        return self.kind in ("done", "failed", "cancelled", "died")


def run_worker(load: LoadBackend, pipe: "Connection[Message, Job | None]") -> None:
    """Load the model, then carry out jobs until the pipe is closed. Receiving None during a job cancels it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent process decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        try:
            local = Local(load())
        except Exception as error:
            pipe.send(Message("broken", _plain(error)))
            return
        pipe.send(Message("ready"))
        while True:
            job = pipe.recv()
            if job is not None:  # a None here cancels a job that has ended by now
                for message in _messages(local, job, pipe):
                    pipe.send(message)


def _messages(local: Local, job: Job, pipe: "Connection[Message, Job | None]") -> Iterator[Message]:
    start, results = time.perf_counter(), {}
    try:
        if isinstance(job, DescribeJob):
            yield Message("done", local.describe(job.request))
            return
        for key, event in _events(local, job):
            if pipe.poll():
                _receive_or_exit(pipe)
                yield Message("cancelled")
                return
            if isinstance(event, Result):
                results[key] = event
            elif job.with_events:  # previews stay here: decoding one later would need this step's latents
                yield Message("event", replace(event, preview=None) if isinstance(event, Progress) else event)
        yield Message("done", (results, time.perf_counter() - start))
    except Exception as error:  # every error is sent to the pool; only `SystemExit` ends the process
        yield Message("failed", _plain(error))


def _receive_or_exit(pipe: "Connection[Message, Job | None]") -> None:
    """Receive the cancellation; a closed pipe ends the process."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        raise SystemExit from None


def _events(local: Local, job: PaintJob) -> Iterator[tuple[Any, Event]]:
    if not job.with_events:
        return local.stream_unit(job.requests)
    ((key, request),) = job.requests.items()
    return ((key, event) for event in local.stream(request))


def _plain(error: Exception) -> Exception:
    """An error with the same message, of a built-in type that every process can unpickle."""
    kind = next((kind for kind in (ValueError, FloatingPointError) if isinstance(error, kind)), RuntimeError)
    return kind(error_message(error))


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class Worker:
    """The pool's end of a process that carries out jobs. A process that died is started again with the next job.

    Where it cannot be started, `receive` raises the `ValueError` that `load` raised, other errors as `RuntimeError`,
    and `ChildProcessError` where the process died three times while it loaded.
    """

    def __init__(self, load: LoadBackend) -> None:
        self._load = load
        self._job: Job | None = None
        self._ready, self._failed_starts = False, 0
        self._start()

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def submit(self, job: Job) -> None:
        """Send a job; the previous one must have ended."""
        self._job = job
        if self.pipe.closed or not self._process.is_alive():
            self._end(timeout=0)
            self._start()
        with contextlib.suppress(OSError):  # the process has just died, which `receive` will notice
            self.pipe.send(job)

    def receive(self) -> Message:
        """Wait for the next message about the job."""
        while True:
            try:
                message: Message = self.pipe.recv()
            except (EOFError, OSError):  # the process died, between two messages or within one
                exit_status = self._end(timeout=STEP_TIMEOUT)
                if not self._ready:
                    self._restart(exit_status)
                    continue
                message = Message("died", f"the process that painted it died ({exit_status})")
            if message.ends_job or message.kind == "broken":
                self._job = None
            if message.kind == "broken":
                raise message.content
            self._ready, self._failed_starts = True, 0
            return message

    def cancel(self) -> None:
        """End the job, if it has not ended: between two steps, or by killing the process if a step takes too long."""
        if self._job is None or self.pipe.closed:
            return
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        deadline = time.monotonic() + STEP_TIMEOUT
        while self._ready and self.pipe.poll(max(0.0, deadline - time.monotonic())):
            if self.receive().ends_job:
                return
        self._job = None
        self._end(timeout=0)

    def close(self) -> None:
        """End the process."""
        self._end(timeout=STEP_TIMEOUT if self._ready else 0)

    def _start(self) -> None:
        self.pipe, worker_end = SPAWN.Pipe()
        self._process = SPAWN.Process(target=run_worker, args=(self._load, worker_end), daemon=True)
        self._process.start()
        worker_end.close()
        self._ready = False

    def _end(self, timeout: float) -> str:
        """Close the pipe, and kill the process if it does not exit within `timeout` seconds; returns how it ended."""
        if self.pipe.closed:
            return "closed"
        self.pipe.close()
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode or 0
        self._process.close()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def _restart(self, exit_status: str) -> None:
        """Start again after a death while loading, which counts as no try of the job."""
        job, self._failed_starts = self._job, self._failed_starts + 1
        if self._failed_starts == TRIES:
            self._job, self._failed_starts = None, 0
            raise ChildProcessError(
                f"a process died {TRIES} times while it loaded the model ({exit_status}); is there enough memory?"
            )
        assert job is not None
        self.submit(job)
