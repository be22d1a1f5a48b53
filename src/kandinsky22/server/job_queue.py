"""The queue between the dialects and the processes that paint: limits, fairness, events, and what is stored when.

Everything here runs in the server's event loop, except a thread that waits for the pool's events. Imports no torch.
"""

import asyncio
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from kandinsky22.request import Defaults, Picture, Request
from kandinsky22.request.events import (
    Cancelled,
    Event,
    Failed,
    Preview,
    Progress,
    Queued,
    Result,
    Started,
    is_last,
)
from kandinsky22.server.store import ENDED, Job, Key, Store, StoredPicture

logger = logging.getLogger(__name__)
REMEMBERED = 1000  # ended jobs whose events can still be read again
LOADING_SECONDS = 300.0  # that a request waits for the model at most
DRAIN_SECONDS = 5.0  # that running jobs are given to finish when the server stops


class RefusedError(Exception):
    """A request that is not accepted now. retry_after: seconds, None if it makes no sense to try again."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFullError(RefusedError):
    """Too many jobs wait, of everybody or of this key."""


class StorageFullError(RefusedError):
    """There is no space for more pictures."""


class StoppingError(RefusedError):
    """The server is about to stop."""


class Session(Protocol):
    """Carries requests out; see `backends.pool.Session`."""

    def submit(self, key: str, request: Request, preview: Preview | None = None) -> None: ...

    def cancel(self, key: str) -> None: ...

    def receive(self) -> tuple[str, Event]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """waiting: jobs of everybody that may wait. running: pictures that are painted at a time. max_pixels: of a picture.
    max_bytes: of everything stored, None: no limit but free_bytes, which stay free on the disk. max_seconds: the age at
    which pictures without a star are deleted, None: never."""

    waiting: int = 64
    running: int = 16
    max_pixels: int = 2048 * 2048
    max_pictures: int = 16
    max_bytes: int | None = None
    max_seconds: float | None = None
    free_bytes: int = 200 << 20


@dataclass(eq=False)
class LiveJob:
    """A job of this process: its events so far, numbered from 1, and how to wait for more.

    Of progress, only the latest and the latest with a preview stay. pictures: what it painted. asked_to_cancel: whether
    its owner cancelled it.
    """

    job: Job
    preview: Preview | None
    events: list[tuple[int, Event]] = field(default_factory=list)
    count: int = 0
    pictures: list[StoredPicture] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    asked_to_cancel: bool = False
    is_running: bool = False

    @property
    def last(self) -> Event | None:
        """The latest event."""
        return self.events[-1][1] if self.events else None

    @property
    def has_ended(self) -> bool:
        """Whether no event follows."""
        return self.last is not None and is_last(self.last)

    def add(self, event: Event) -> None:
        """Add an event, and wake up everyone who waits for one."""
        if isinstance(event, Progress):
            self.events = [(n, old) for n, old in self.events if not _replaces(event, old)]
        self.count += 1
        self.events.append((self.count, event))
        self.changed.set()
        self.changed = asyncio.Event()


class JobQueue:
    """The jobs of a server. `start` it in the event loop that uses it, and `stop` it there."""

    def __init__(self, store: Store, session: Session, defaults: Callable[[], Defaults], limits: Limits) -> None:
        self.store, self.session, self.limits = store, session, limits
        self._read_defaults = defaults
        self.defaults: Defaults | None = None  # of the model, once a process has loaded it
        self._loaded = asyncio.Event()
        self.observers: list[Callable[[LiveJob, Event], None]] = []  # for metrics
        self._live: dict[str, LiveJob] = {}
        self._ended: deque[str] = deque()
        self._waiting: dict[str, deque[LiveJob]] = {}  # by owner
        self._spent: dict[str, float] = {}  # cost of what an owner has had, while the owner has jobs
        self._stopping = False
        self._finishing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up the jobs of an earlier process, and begin to work."""
        self._loop = asyncio.get_running_loop()
        for job in await asyncio.to_thread(self.store.unfinished):
            self._enqueue(LiveJob(job, None))
        threading.Thread(target=self._receive, name="kandinsky22-jobs", daemon=True).start()
        threading.Thread(target=self._load_defaults, name="kandinsky22-defaults", daemon=True).start()

    async def stop(self) -> None:
        """Accept nothing more, wait a little for what runs, and put the rest back into the queue."""
        self._stopping = True
        end = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < end and any(live.is_running for live in self._live.values()):
            await asyncio.sleep(0.05)
        for live in self._live.values():
            if live.is_running:
                self.session.cancel(live.job.id)
                await asyncio.to_thread(self.store.requeue, live.job.id)
        if self._finishing:
            await asyncio.wait(self._finishing)

    # What dialects use

    async def ready(self) -> Defaults:
        """The model's defaults, once a process has loaded it. Raises `RefusedError` if that takes too long."""
        try:
            await asyncio.wait_for(self._loaded.wait(), LOADING_SECONDS)
        except TimeoutError:
            raise RefusedError("the model is still loading; try again later", retry_after=10) from None
        assert self.defaults is not None
        return self.defaults

    def resolve(self, request: Request, defaults: Defaults) -> Request:
        """The request with every open field filled in.

        Raises `ValueError` for what the model cannot do or the server does not allow.
        """
        request = request.resolved(defaults)
        assert request.height is not None and request.width is not None
        if request.height * request.width > self.limits.max_pixels:
            side = int(self.limits.max_pixels**0.5)
            raise ValueError(f"this server paints pictures of at most {side}x{side} pixels; ask for a smaller size")
        if request.num_images > self.limits.max_pictures:
            raise ValueError(
                f"this server paints at most {self.limits.max_pictures} pictures per request; ask for fewer"
            )
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

        Raises as `resolve` does, and `QueueFullError`, `StorageFullError` and `StoppingError`.
        """
        self._check_room(key)
        request = self.resolve(request, await self.ready())
        await asyncio.to_thread(self._check_space, request)
        job = await asyncio.to_thread(
            self.store.add_job,
            key.name,
            request,
            source=source,
            cost=cost_of(request),
            hidden=hidden,
            idempotency_key=idempotency_key,
        )
        if job.id in self._live or job.state in ENDED:  # repeated with its idempotency key
            live = await self.live(job.id, key.name)
            assert live is not None
            return live
        live = LiveJob(job, preview)
        self._enqueue(live)
        return live

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
            live.add(Failed("error", stored.error or "unknown"))
        else:
            live.add(Cancelled())
        return live

    async def events(self, live: LiveJob, after: int = 0) -> AsyncIterator[tuple[int, Event]]:
        """A job's events with numbers above `after`, until its last."""
        while True:
            changed = live.changed
            for number, event in list(live.events):
                if number > after:
                    after = number
                    yield number, event
                    if is_last(event):
                        return
            if not live.has_ended:
                await changed.wait()

    async def wait(self, live: LiveJob) -> list[StoredPicture]:
        """A job's pictures, when it is done. Raises `ValueError` for a refused request, else `RuntimeError`."""
        async for _, event in self.events(live):
            if isinstance(event, Failed):
                raise event.exception()
            if isinstance(event, Cancelled):
                raise asyncio.CancelledError
        return live.pictures

    async def cancel(self, live: LiveJob) -> None:
        """Cancel a job, if it has not ended."""
        if live.has_ended or live.asked_to_cancel:
            return
        live.asked_to_cancel = True
        if live.is_running:
            self.session.cancel(live.job.id)
        else:
            self._waiting[live.job.owner].remove(live)
            await self._end(live, Cancelled())

    def position(self, live: LiveJob) -> int | None:
        """How many jobs will start before this one; None if it does not wait."""
        order = self._order()
        return order.index(live) if live in order else None

    def waiting(self, owner: str | None = None) -> int:
        """How many jobs wait, of an owner or of everybody."""
        return sum(len(jobs) for name, jobs in self._waiting.items() if owner in (None, name))

    def running(self, owner: str | None = None) -> list[LiveJob]:
        """The jobs that run, of an owner or of everybody."""
        return [live for live in self._live.values() if live.is_running and owner in (None, live.job.owner)]

    # Limits and fairness

    def _check_room(self, key: Key) -> None:
        if self._stopping:
            raise StoppingError("the server is stopping; try again later", retry_after=10)
        if self.waiting() >= self.limits.waiting:
            raise QueueFullError("the server is busy; try again later", retry_after=5)
        if self.waiting(key.name) + len(self.running(key.name)) >= key.max_jobs:
            raise QueueFullError(f"this key may have {key.max_jobs} jobs at a time; wait for one to end", retry_after=2)

    def _check_space(self, request: Request) -> None:
        needed = 4 * request.num_images * (request.height or 0) * (request.width or 0)
        limits = self.limits
        if limits.max_seconds is not None or limits.max_bytes is not None:
            most = None if limits.max_bytes is None else limits.max_bytes - needed
            self.store.prune(max_bytes=most, max_seconds=limits.max_seconds)
            if most is not None and self.store.bytes_used() > most:
                raise StorageFullError("the server's space for pictures is full; delete pictures, or take their stars")
        if shutil.disk_usage(self.store.folder).free < limits.free_bytes + needed:
            raise StorageFullError("the server's disk is full; its operator must make room")

    def _enqueue(self, live: LiveJob) -> None:
        owner = live.job.owner
        if owner not in self._spent:  # starts level with those who wait, so that nobody saves up
            self._spent[owner] = min(self._spent.values(), default=0.0)
        self._live[live.job.id] = live
        self._waiting.setdefault(owner, deque()).append(live)
        live.add(Queued(self.position(live) or 0))
        self._dispatch()

    def _order(self) -> list[LiveJob]:
        """The waiting jobs in the order in which they will start: next is the owner who has had least."""
        spent, queues, order = (
            dict(self._spent),
            {name: deque(jobs) for name, jobs in self._waiting.items() if jobs},
            [],
        )
        while queues:
            owner = min(queues, key=lambda name: (spent[name], queues[name][0].job.number))
            live = queues[owner].popleft()
            order.append(live)
            spent[owner] += live.job.cost
            if not queues[owner]:
                del queues[owner]
        return order

    def _dispatch(self) -> None:
        """Hand jobs to the processes while there is room."""
        while not self._stopping and self.waiting():
            live = self._order()[0]
            running = sum(other.job.request.num_images for other in self.running())
            if running and running + live.job.request.num_images > self.limits.running:
                return
            self._waiting[live.job.owner].popleft()
            self._spent[live.job.owner] += live.job.cost
            live.is_running = True
            try:
                request = self._with_pictures(live.job.request)
                self.session.submit(live.job.id, request, live.preview)
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

    def _receive(self) -> None:
        while True:
            try:
                key, event = self.session.receive()
            except Exception as error:  # the processes cannot be started
                logger.error("the model cannot be loaded: %s", error)
                self._call_in_loop(self._fail_running, str(error))
                if self._stopping:
                    return
                time.sleep(1)
            else:
                self._call_in_loop(self._on_event, key, event)

    def _call_in_loop(self, function: Callable[..., None], *values: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *values)

    def _load_defaults(self) -> None:
        try:
            self.defaults = self._read_defaults()
            self._call_in_loop(self._loaded.set)
        except Exception as error:
            logger.error("the model cannot be loaded: %s", error)

    def _fail_running(self, error: str) -> None:
        for live in self.running():
            self._finish_later(live, Failed("error", error))

    def _on_event(self, job: str, event: Event) -> None:
        live = self._live.get(job)
        if live is None or live.has_ended or isinstance(event, Queued):
            return
        if isinstance(event, Cancelled) and not live.asked_to_cancel:  # the server stops: `stop` has put it back
            live.is_running = False
        elif is_last(event):
            self._finish_later(live, event)
        else:
            self._publish(live, event)
            if isinstance(event, Started):
                self._in_background(asyncio.to_thread(self.store.start, job, event.request))

    def _publish(self, live: LiveJob, event: Event) -> None:
        live.add(event)
        for observe in self.observers:
            observe(live, event)

    def _finish_later(self, live: LiveJob, event: Event) -> None:
        """Store what the last event says, and then publish it."""
        self._in_background(self._end(live, event))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def _end(self, live: LiveJob, event: Event) -> None:
        job = live.job
        try:
            if isinstance(event, Result):
                live.pictures = await asyncio.to_thread(self._store_pictures, job, event)
                event = replace(event, pictures=[])  # from now on they are in the store
            elif isinstance(event, Failed):
                await asyncio.to_thread(self.store.end, job.id, "failed", event.error)
            else:
                await asyncio.to_thread(self.store.end, job.id, "cancelled")
        except OSError as error:  # the disk is full, or gone
            logger.error("cannot store the pictures of a job: %s", error)
            event = Failed("error", f"the pictures could not be stored: {error.strerror or error}")
            await asyncio.to_thread(self.store.end, job.id, "failed", event.error)
        live.is_running = False
        self._publish(live, event)
        self._ended.append(job.id)
        while len(self._ended) > REMEMBERED:
            self._live.pop(self._ended.popleft(), None)
        if not self.waiting(job.owner) and not self.running(job.owner):
            self._spent.pop(job.owner, None)
            self._waiting.pop(job.owner, None)
        self._dispatch()

    def _store_pictures(self, job: Job, result: Result) -> list[StoredPicture]:
        pictures = [
            (
                picture.to_png(),
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


def _replaces(new: Progress, old: Event) -> bool:
    """Whether an event need not be read any more when `new` has come."""
    return isinstance(old, Progress) and (old.preview is None or new.preview is not None)


def cost_of(request: Request) -> float:
    """What a resolved request costs, for fairness: megapixels times steps times pictures."""
    pixels = (request.height or 0) * (request.width or 0)
    return pixels / 1e6 * (request.decoder.steps or 1) * request.num_images
