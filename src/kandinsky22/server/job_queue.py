"""The queue between the dialects and the processes that paint: limits, fairness, events, and what is stored when.

Everything here runs in the server's event loop, except a thread that waits for the pool's events. Imports no torch.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.exc import SQLAlchemyError

from kandinsky22.imaging.images import Painting
from kandinsky22.request import Defaults, Picture, Request
from kandinsky22.request.events import Cancelled, Event, Failed, Preview, Queued, Result, Started, is_last
from kandinsky22.server.fair_queue import FairQueue
from kandinsky22.server.limits import (
    Limits,
    QueueFullError,
    RefusedError,
    StoppingError,
    bytes_of,
    cost_of,
    exception_of,
    free_bytes,
    make_space,
)
from kandinsky22.server.live_job import LiveJob
from kandinsky22.server.picture_files import PictureFiles
from kandinsky22.server.store import ENDED, Job, Key, Store, StoredPicture

logger = logging.getLogger(__name__)
REMEMBERED = 64  # ended jobs whose events can be read again; of older ones, only how they ended
LOADING_SECONDS = 300.0  # that a request waits for the model at most
RETRY_SECONDS = 30.0  # until a model that could not be loaded is tried again
DRAIN_SECONDS = 5.0  # that running jobs are given to finish when the server stops

ContentFilter = Callable[[Painting], str | None]
"""Why a picture is withheld, in one sentence for the client; None: it is not."""


class Session(Protocol):
    """Carries requests out; see `backends.pool.Session`."""

    def submit(self, key: str, request: Request, preview: Preview | None = None) -> None: ...

    def cancel(self, key: str) -> None: ...

    def receive(self) -> tuple[str, Event]: ...

    def close(self) -> None: ...


class JobQueue:
    """The jobs of a server. `start` it in the event loop that uses it, and `stop` it there.

    defaults: of the model; it waits for a process that loads it. content_filter: judges each picture before it is
    stored; with one, no previews are sent. files: encodes the pictures. problem: why the model cannot be loaded, if so.
    """

    def __init__(
        self,
        store: Store,
        session: Session,
        defaults: Callable[[], Defaults],
        limits: Limits,
        *,
        content_filter: ContentFilter | None = None,
        files: PictureFiles | None = None,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self.store, self.session, self.limits, self.files = store, session, limits, files or PictureFiles()
        self._read_defaults, self._filter, self._free = defaults, content_filter, free
        self.defaults: Defaults | None = None  # of the model, once a process has loaded it
        self.problem: str | None = None
        self.observers: list[Callable[[LiveJob, Event], None]] = []  # for metrics
        self._live: dict[str, LiveJob] = {}
        self._ended: deque[str] = deque()
        self._waiting: FairQueue[LiveJob] = FairQueue()
        self._arriving: Counter[str] = Counter()  # by owner; accepted and not yet in the queue
        self._stopping = threading.Event()
        self.stopped = asyncio.Event()  # no event follows
        self._model_changed = asyncio.Event()
        self._finishing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up the jobs of an earlier process, and begin to work."""
        self._loop = asyncio.get_running_loop()
        for job in await asyncio.to_thread(self.store.recover):
            self._enqueue(LiveJob(job, None))
        threading.Thread(target=self._receive, name="kandinsky22-jobs", daemon=True).start()
        self._load_model()

    async def stop(self) -> None:
        """Accept nothing more, wait a little for what runs, and put the rest back into the queue.

        The events of what did not end stop without a last one.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        end = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < end and any(live.is_running for live in self._live.values()):
            await asyncio.sleep(0.05)
        for live in self._live.values():
            if live.is_running:
                self.session.cancel(live.job.id)
                await asyncio.to_thread(self.store.requeue, live.job.id)
        if self._finishing:
            await asyncio.wait(self._finishing)
        self.stopped.set()
        for live in self._live.values():
            live.wake_up()

    # What dialects use

    async def ready(self) -> Defaults:
        """The model's defaults, once a process has loaded it.

        Raises `RefusedError` if that takes too long, or is not possible.
        """
        end = time.monotonic() + LOADING_SECONDS
        while self.defaults is None or self.problem is not None:
            if self.problem is not None:
                raise RefusedError(f"the model cannot be loaded: {self.problem}", retry_after=RETRY_SECONDS)
            try:
                await asyncio.wait_for(self._model_changed.wait(), end - time.monotonic())
            except TimeoutError:
                raise RefusedError("the model is still loading; try again later", retry_after=10) from None
        return self.defaults

    def resolve(self, request: Request, defaults: Defaults) -> Request:
        """The request with every open field filled in.

        Raises `ValueError` for what the model cannot do or the server does not allow.
        """
        request = request.resolved(defaults)
        self.limits.check(request)
        return request

    async def submit(
        self,
        key: Key,
        request: Request,
        *,
        source: str,
        preview: Preview | None = None,
        hidden: bool = False,
        idempotency_key: str | None = None,
    ) -> LiveJob:
        """Accept a request. source: the dialect. hidden: not shown in the gallery.

        Raises as `resolve` does, `ConflictError`, `QueueFullError`, `StorageFullError` and `StoppingError`.
        """
        self._check_room(key)
        self._arriving[key.name] += 1  # several may arrive while each waits below
        try:
            resolved = self.resolve(request, await self.ready())
            await asyncio.to_thread(self.check_space, bytes_of(resolved))
            job = await asyncio.to_thread(
                self.store.add_job,
                key.name,
                resolved,
                source=source,
                cost=cost_of(resolved),
                hidden=hidden,
                idempotency_key=idempotency_key,
                asked=request,
            )
        finally:
            self._arriving[key.name] -= 1
        if job.id in self._live or job.state in ENDED:  # repeated with its idempotency key
            live = await self.live(job.id, key.name)
            assert live is not None
            return live
        live = LiveJob(job, preview)
        self._enqueue(live)
        return live

    def check_space(self, needed: int) -> None:
        """Raises `StorageFullError` if so many bytes more cannot be stored."""
        make_space(self.store, self.limits, needed, self._free)

    async def live(self, job: str, owner: str) -> LiveJob | None:
        """An owner's job with its events, also one that ended in an earlier process; None if there is none."""
        if (live := self._live.get(job)) is not None:
            return live if live.job.owner == owner else None
        stored = await asyncio.to_thread(self.store.job, job, owner)
        if stored is None:
            return None
        live = LiveJob(stored, None, pictures=await asyncio.to_thread(self.store.pictures_of, job))
        if stored.state == "succeeded":
            live.add(Result([], stored.request, (stored.ended or 0) - (stored.started or stored.created)))
        elif stored.state == "failed":
            live.add(Failed(stored.reason or "error", stored.error or "unknown"))
        elif stored.state == "cancelled":
            live.add(Cancelled())
        return live

    async def events(self, live: LiveJob, after: int = 0) -> AsyncIterator[tuple[int, Event]]:
        """A job's events with numbers above `after`, until its last; it ends without one if the server stops."""
        while True:
            changed = live.changed
            for number, event in list(live.events):
                if number > after:
                    after = number
                    yield number, event
                    if is_last(event):
                        return
            if live.count > after:  # while the last ones were being read
                continue
            if live.has_ended or self.stopped.is_set():
                return
            await changed.wait()

    async def wait(self, live: LiveJob) -> list[StoredPicture]:
        """A job's pictures, when it is done.

        Raises `CensoredError` or another `ValueError` for a refused request, `StoppingError` if the server stops, and
        as `Failed.exception` says.
        """
        async for _, event in self.events(live):
            if isinstance(event, Failed):
                raise exception_of(event)
            if isinstance(event, Cancelled):
                raise asyncio.CancelledError
            if isinstance(event, Result):
                return live.pictures
        raise StoppingError("the server is stopping; the request is carried out after its next start", retry_after=10)

    async def cancel(self, live: LiveJob) -> None:
        """Cancel a job, if it has not ended."""
        if live.has_ended or live.asked_to_cancel:
            return
        live.asked_to_cancel = True
        if live.is_running:
            self.session.cancel(live.job.id)
        else:
            self._waiting.remove(live.job.owner, live)
            await self._end(live, Cancelled())

    def position(self, live: LiveJob) -> int | None:
        """How many jobs will start before this one; None if it does not wait."""
        order = self._waiting.order()
        return order.index(live) if live in order else None

    def waiting(self, owner: str | None = None) -> int:
        """How many jobs wait, of an owner or of everybody."""
        return len(self._waiting) if owner is None else self._waiting.count(owner)

    def running(self, owner: str | None = None) -> list[LiveJob]:
        """The jobs that run, of an owner or of everybody."""
        return [live for live in self._live.values() if live.is_running and owner in (None, live.job.owner)]

    def active(self, owner: str) -> list[LiveJob]:
        """An owner's jobs that have not ended, in the order in which they came."""
        lives = [live for live in self._live.values() if live.job.owner == owner and not live.has_ended]
        return sorted(lives, key=lambda live: live.job.number)

    def _check_room(self, key: Key) -> None:
        if self._stopping.is_set():
            raise StoppingError("the server is stopping; try again later", retry_after=10)
        if self.waiting() + self._arriving.total() >= self.limits.waiting:
            raise QueueFullError("the server is busy; try again later", retry_after=2)
        if self.waiting(key.name) + len(self.running(key.name)) + self._arriving[key.name] >= key.max_jobs:
            raise QueueFullError(f"this key may have {key.max_jobs} jobs at a time; wait for one to end", retry_after=2)

    def _enqueue(self, live: LiveJob) -> None:
        job = live.job
        self._live[job.id] = live
        self._waiting.add(job.owner, job.number, job.cost, live)
        self._publish(live, Queued(self.position(live) or 0))
        self._dispatch()

    def _dispatch(self) -> None:
        """Hand jobs to the processes while there is room."""
        while self.defaults is not None and self.problem is None and self.waiting() and not self._stopping.is_set():
            live = self._waiting.first()
            running = sum(other.job.request.num_images for other in self.running())
            if running and running + live.job.request.num_images > self.limits.running:
                return
            self._waiting.take()
            live.is_running = True
            try:
                request = self._with_pictures(live.job.request)
                self.session.submit(live.job.id, request, None if self._filter else live.preview)
            except ValueError as error:
                self._finish_later(live, Failed("refused", str(error)))

    def _with_pictures(self, request: Request) -> Request:
        """The request with the pixels of its pictures. Raises `ValueError` for one that is not here any more."""
        pictures = {}
        for path, reference in request.pictures.items():
            if reference.pixels is None:
                file = self.store.file(reference.sha256, "picture")
                if file is None or not file.is_file():
                    raise ValueError(
                        f"the picture {reference.name or reference.sha256[:8]} is not here; upload it again"
                    )
                pictures[path] = Picture.of(file)
            else:
                pictures[path] = reference
        return request.with_pictures(pictures)

    # Events of the processes

    def _load_model(self) -> None:
        threading.Thread(target=self._load_defaults, name="kandinsky22-defaults", daemon=True).start()

    def _load_defaults(self) -> None:
        while not self._stopping.is_set():
            try:
                defaults = self._read_defaults()
            except Exception as error:
                logger.error("the model cannot be loaded: %s", error)
                self._call_in_loop(self._set_model, None, str(error))
                self._stopping.wait(RETRY_SECONDS)
            else:
                self._call_in_loop(self._set_model, defaults, None)
                return

    def _set_model(self, defaults: Defaults | None, problem: str | None) -> None:
        self.defaults, self.problem = defaults, problem
        self._model_changed.set()
        self._model_changed = asyncio.Event()
        self._dispatch()

    def _receive(self) -> None:
        while not self.stopped.is_set():
            try:
                key, event = self.session.receive()
            except Exception as error:  # the processes cannot be started
                self._call_in_loop(self._on_broken, str(error))
            else:
                self._call_in_loop(self._on_event, key, event)

    def _call_in_loop(self, function: Callable[..., None], *values: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *values)

    def _on_broken(self, error: str) -> None:
        if self._stopping.is_set():
            return
        logger.error("the processes cannot be started: %s", error)
        for live in self.running():
            self._finish_later(live, Failed("error", error))
        if self.problem is None:
            self._set_model(None, error)
            self._load_model()

    def _on_event(self, job: str, event: Event) -> None:
        live = self._live.get(job)
        if live is None or live.has_ended or isinstance(event, Queued):
            return
        if isinstance(event, Cancelled) and not live.asked_to_cancel:  # the server stops: `stop` has put it back
            live.is_running = False
        elif is_last(event):
            self._finish_later(live, event)
        elif isinstance(event, Started):
            self._publish(live, replace(event, request=_without_pixels(event.request)))
            self._in_background(asyncio.to_thread(self.store.start, job, event.request))
        else:
            self._publish(live, event)

    def _publish(self, live: LiveJob, event: Event) -> None:
        live.add(event)
        for observe in self.observers:
            observe(live, event)

    def _finish_later(self, live: LiveJob, event: Event) -> None:
        """Store what the last event says, and then publish it."""
        self._in_background(self._end(live, event))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        async def logged() -> None:
            try:
                await work
            except Exception:
                logger.exception("what happened to a job could not be stored")

        task = self._loop.create_task(logged())
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def _end(self, live: LiveJob, event: Event) -> None:
        job, was_running = live.job, live.is_running
        event = await asyncio.to_thread(self._store_end, live, event)
        live.is_running = False
        self._publish(live, event)
        self._ended.append(job.id)
        while len(self._ended) > REMEMBERED:
            self._live.pop(self._ended.popleft(), None)
        if was_running:
            self._waiting.done(job.owner)
        self._dispatch()

    def _store_end(self, live: LiveJob, event: Event) -> Event:
        """Store a job's last event, and return the one to publish."""
        job = live.job
        if isinstance(event, Result):
            try:
                if verdict := self._judge(event):
                    event = Failed("censored", verdict)
                else:
                    live.pictures = self._store_pictures(job, event)
                    return Result([], _without_pixels(event.request), event.seconds)  # they are in the store now
            except (OSError, SQLAlchemyError) as error:  # the disk is full, or gone
                logger.error("cannot store the pictures of a job: %s", error)
                event = Failed("error", "the pictures could not be stored; the disk of the server may be full")
            except Exception as error:
                logger.exception("the content filter failed")
                event = Failed("error", f"the content filter failed: {error}")
        with suppress(SQLAlchemyError):  # it begins again when the server starts the next time
            if isinstance(event, Failed):
                self.store.end(job.id, "failed", event.reason, event.error)
            else:
                self.store.end(job.id, "cancelled")
        return event

    def _judge(self, result: Result) -> str | None:
        """Why the pictures are withheld, or None."""
        verdicts = map(self._filter, result.pictures) if self._filter else iter(())
        return next((verdict for verdict in verdicts if verdict), None)

    def _store_pictures(self, job: Job, result: Result) -> list[StoredPicture]:
        pictures = [
            (
                self.files.encode(picture),
                {
                    "width": picture.image.width,
                    "height": picture.image.height,
                    "seed": picture.request.seed,
                    "prompt": " ".join(picture.request.texts[:8]),
                },
            )
            for picture in result.pictures
        ]
        return self.store.finish(job, pictures)


def _without_pixels(request: Request) -> Request:
    return request.with_pictures({path: replace(p, pixels=None) for path, p in request.pictures.items()})
