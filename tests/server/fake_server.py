"""A server in a thread, with a session that paints pictures of one colour, step by step if a test wants."""

import queue
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from kandinsky22.backends.fake import DEFAULTS, Fake
from kandinsky22.request import Embedding, Request
from kandinsky22.request.events import Cancelled, Event, Preview, Progress, Result, is_last
from kandinsky22.server import app
from kandinsky22.server.deadline import Deadline
from kandinsky22.server.dialects import DIALECTS
from kandinsky22.server.job_queue import ContentFilter, JobQueue, Limits
from kandinsky22.server.store import Store

WAIT = 10.0  # seconds until a test gives up


class FakeSession:
    """Carries requests out with `Fake`, each in a thread, with as many steps of the decoder as they ask for.

    With `by_step`, a step is done only when `allow` has been called for it.
    """

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[tuple[str, Event]] = queue.SimpleQueue()
        self.by_step = False
        self.requests: list[Request] = []
        self.cancelled: set[str] = set()
        self._steps = threading.Semaphore(0)

    def allow(self, steps: int) -> None:
        """Let so many steps be done."""
        self._steps.release(steps)

    def submit(self, key: str, request: Request, preview: Preview | None = None) -> None:
        self.requests.append(request)
        threading.Thread(target=self._paint, args=(key, request, preview), daemon=True).start()

    def cancel(self, key: str) -> None:
        self.cancelled.add(key)

    def receive(self) -> tuple[str, Event]:
        return self.inbox.get()

    def close(self) -> None:
        pass

    def _paint(self, key: str, request: Request, preview: Preview | None) -> None:
        for _, event in Fake().stream_many({key: request}, preview):
            if isinstance(event, Progress) and event.stage == "decoder":
                continue
            if isinstance(event, Result):
                png = event.pictures[0].to_png()
                n = request.decoder.steps or 1
                for i in range(1, n + 1):
                    if not self._may_step(key):
                        self.inbox.put((key, Cancelled()))
                        return
                    shown = preview is not None and (i % preview.every == 0 or i == n)
                    self.inbox.put((key, Progress("decoder", i, n, png if shown else None)))
            self.inbox.put((key, event))
            if is_last(event):
                return

    def _may_step(self, key: str) -> bool:
        """Wait for a step; whether the job goes on."""
        while key not in self.cancelled:
            if not self.by_step or self._steps.acquire(timeout=0.01):
                return True
        return False


@dataclass
class RunningServer:
    """A server that answers at `url`."""

    url: str
    session: FakeSession
    jobs: JobQueue
    store: Store
    server: uvicorn.Server
    thread: threading.Thread

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def last(self) -> Request:
        """The latest request that was painted."""
        return self.session.requests[-1]

    def get(self, path: str, **options: object) -> httpx.Response:
        return httpx.get(self.url + path, timeout=WAIT, **options)  # type: ignore[arg-type]

    def post(self, path: str, **options: object) -> httpx.Response:
        return httpx.post(self.url + path, timeout=WAIT, **options)  # type: ignore[arg-type]

    def wait_until_idle(self) -> None:
        """Wait until no job waits or runs."""
        end = time.monotonic() + WAIT
        while self.jobs.waiting() or self.jobs.running():
            assert time.monotonic() < end, "jobs still run"
            time.sleep(0.01)

    def stop(self) -> None:
        self.session.by_step = False
        self.server.should_exit = True
        self.thread.join(WAIT)
        self.store.close()


def start(
    folder: Path, limits: Limits | None = None, *, aliases: bool = True, content_filter: ContentFilter | None = None
) -> RunningServer:
    """Start a server whose folder may have keys already."""
    session, store = FakeSession(), Store(folder)
    limits = limits or Limits(free_bytes=0)
    jobs = JobQueue(store, session, lambda: DEFAULTS, limits, content_filter=content_filter)
    application = app.create(
        store,
        jobs,
        DIALECTS,
        model="kandinsky-2.2",
        embed=lambda _: Embedding.of([0.0], "none"),
        resolve=Fake().resolve,
        describe=Fake().describe,
        aliases=aliases,
    )
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(application, http=Deadline, log_level="error", access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + WAIT
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the server does not start"
        time.sleep(0.01)
    return RunningServer(f"http://127.0.0.1:{listener.getsockname()[1]}", session, jobs, store, server, thread)
