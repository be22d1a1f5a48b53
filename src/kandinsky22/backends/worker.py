"""One process of a pool, from both sides: `work` is what runs in it, `Worker` is how it is spoken to. Imports no torch.

A worker is given jobs one at a time over a pipe and answers until a job is ended. It writes no file. It ends when its pipe is
closed, between two steps of painting, and at once when the process that started it has died.
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

from kandinsky22.backends.local import Here
from kandinsky22.backends.work_units import TRIES, sentence
from kandinsky22.request import Request
from kandinsky22.request.events import Backend, Event, Progress, Result

SPAWN = get_context("spawn")  # a fork of a process that has threads, as torch has, may never wake
PATIENCE = 10.0  # seconds for a step of painting to end, before the process is ended with it

Load = Callable[[], Backend]
"""What makes the model in the process itself. Must be picklable."""


class Pictures(NamedTuple):
    """A job: paint a pack. `told`: it is one request, and its events are wanted; without it, only results."""

    requests: Mapping[Any, Request]
    told: bool = False


class About(NamedTuple):
    """A job: say what a request would be."""

    request: Request


Job = Pictures | About


class Answer(NamedTuple):
    """What a worker says. Of a job: an "event", then "done" with (results by key, seconds) or what was asked about, or
    "failed" with an error, or "cancelled"; of itself: "ready", "broken" with why it cannot be, or "died" of what."""

    what: Literal["ready", "broken", "event", "done", "failed", "cancelled", "died"]
    content: Any = None

    @property
    def last(self) -> bool:
        """Whether the job is ended."""
        return self.what in ("done", "failed", "cancelled", "died")


def work(load: Load, pipe: "Connection[Answer, Job | None]") -> None:
    """Load the model, then carry out jobs until the pipe is closed. None, while a job is carried out, cancels it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a Ctrl-C, whoever started this decides what becomes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        try:
            here = Here(load())
        except Exception as error:
            pipe.send(Answer("broken", _plain(error)))
            return
        pipe.send(Answer("ready"))
        while True:
            job = pipe.recv()
            if job is not None:  # a None that came too late
                for answer in _answers(here, job, pipe):
                    pipe.send(answer)


def _answers(here: Here, job: Job, pipe: "Connection[Answer, Job | None]") -> Iterator[Answer]:
    began, results = time.perf_counter(), {}
    try:
        if isinstance(job, About):
            yield Answer("done", here.about(job.request))
            return
        for key, event in _events(here, job):
            if pipe.poll():
                _heard(pipe)
                yield Answer("cancelled")
                return
            if isinstance(event, Result):
                results[key] = event
            elif job.told:  # a preview would be decoded by this process, which has gone on by then
                yield Answer("event", replace(event, preview=None) if isinstance(event, Progress) else event)
        yield Answer("done", (results, time.perf_counter() - began))
    except Exception as error:  # whatever it is, it is told; only `SystemExit` ends the process
        yield Answer("failed", _plain(error))


def _heard(pipe: "Connection[Answer, Job | None]") -> Job | None:
    """What was said meanwhile. Where the pipe was closed, the process ends."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        raise SystemExit from None


def _events(here: Here, job: Pictures) -> Iterator[tuple[Any, Event]]:
    if not job.told:
        return here.stream_pack(job.requests)
    ((key, request),) = job.requests.items()
    return ((key, event) for event in here.stream(request))


def _plain(error: Exception) -> Exception:
    """An error that every process can read."""
    kind = next((kind for kind in (ValueError, FloatingPointError) if isinstance(error, kind)), RuntimeError)
    return kind(sentence(error))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class Worker:
    """A process that carries out jobs; one that died is started again with the next.

    Where it cannot be started, `hear` raises what `load` raised, a `ValueError` as it is and others as `RuntimeError`, and
    `ChildProcessError` where it died three times while it loaded.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._job: Job | None = None
        self._ready, self._stillborn = False, 0
        self._start()

    @property
    def process(self) -> int:
        """The id of the process that has the job."""
        assert self._process.pid is not None
        return self._process.pid

    def begin(self, job: Job) -> None:
        """Give it a job; the one before must have ended."""
        self._job = job
        if self.pipe.closed or not self._process.is_alive():
            self._end(patience=0)
            self._start()
        with contextlib.suppress(OSError):  # it died just now, which `hear` will find
            self.pipe.send(job)

    def hear(self) -> Answer:
        """Wait for the next answer to the job."""
        while True:
            try:
                answer: Answer = self.pipe.recv()
            except (EOFError, OSError):  # between two answers, or amid one
                how = self._end(patience=PATIENCE)
                if not self._ready:
                    self._begin_once_more(how)
                    continue
                answer = Answer("died", f"the process that painted it died ({how})")
            if answer.last or answer.what == "broken":
                self._job = None
            if answer.what == "broken":
                raise answer.content
            self._ready, self._stillborn = True, 0
            return answer

    def cancel(self) -> None:
        """End the job, if it has not ended: between two steps, or with the process."""
        if self._job is None or self.pipe.closed:
            return
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        until = time.monotonic() + PATIENCE
        while self._ready and self.pipe.poll(max(0.0, until - time.monotonic())):
            if self.hear().last:
                return
        self._job = None
        self._end(patience=0)

    def close(self) -> None:
        """End the process."""
        self._end(patience=PATIENCE if self._ready else 0)

    def _start(self) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=work, args=(self._load, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False

    def _end(self, patience: float) -> str:
        """End the process if it does not end by itself; returns how it ended."""
        if self.pipe.closed:
            return "closed"
        self.pipe.close()
        self._process.join(patience)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode or 0
        self._process.close()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def _begin_once_more(self, how: str) -> None:
        """After a death before the job began, for which the job is not to blame."""
        job, self._stillborn = self._job, self._stillborn + 1
        if self._stillborn == TRIES:
            self._job, self._stillborn = None, 0
            raise ChildProcessError(
                f"a process died {TRIES} times while it loaded the model ({how}); is there enough memory?"
            )
        assert job is not None
        self.begin(job)
