"""What tests of the server need: models without a network, in this process and in others, and a running server."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from kandinsky22.backends.fake import DEFAULTS, Fake
from kandinsky22.request import Defaults, Embedding, Request
from kandinsky22.request.events import Cancelled, Event, Preview, Started, is_last
from kandinsky22.server import app as application
from kandinsky22.server.deadline import Deadline
from kandinsky22.server.dialects import DIALECTS
from kandinsky22.server.job_queue import JobQueue
from kandinsky22.server.limits import Limits
from kandinsky22.server.store import Store

SECONDS = 20.0  # that a test waits for something at most


def embedding_of(request: Request) -> Embedding:
    """The embedding of a text, for tests: its length and its first letter."""
    text = request.texts[0]
    return Embedding.of([float(len(text)), float(ord(text[0])), 1.0, 0.0], "fake")


class FakeSession:
    """Paints like `Fake`, at once; a request whose prompt begins with "wait" waits until it is released."""

    def __init__(self) -> None:
        self.waiting: dict[str, Request] = {}
        self.order: list[str] = []  # the prompts, as they came
        self.inbox: queue.SimpleQueue[tuple[str, Event] | Exception] = queue.SimpleQueue()

    def submit(self, key: str, request: Request, preview: Preview | None = None) -> None:
        self.order.append(" ".join(request.texts))
        if self.order[-1].startswith("wait"):
            self.waiting[key] = request
            self.inbox.put((key, Started(request, 1)))
            return
        for event in Fake().stream_many({key: request}, preview):
            self.inbox.put(event)

    def release(self) -> None:
        """Paint what waits."""
        for key, request in list(self.waiting.items()):
            del self.waiting[key]
            for event in Fake().stream_many({key: request}):
                self.inbox.put(event)

    def cancel(self, key: str) -> None:
        if self.waiting.pop(key, None) is not None:
            self.inbox.put((key, Cancelled()))

    def receive(self) -> tuple[str, Event]:
        item = self.inbox.get()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None: ...


def read_defaults() -> Defaults:
    return DEFAULTS


def app_of(folder: Path, session: FakeSession | None = None, **options: Any) -> FastAPI:
    """The application over a fake model. options: of `JobQueue`, with `limits`, `defaults` and `hosts`."""
    store = Store(folder)
    hosts = options.pop("hosts", ["testserver"])
    limits, defaults = options.pop("limits", Limits(free_bytes=0)), options.pop("defaults", read_defaults)
    jobs = JobQueue(store, session or FakeSession(), defaults, limits, **options)
    backend = Fake()
    return application.create(
        store,
        jobs,
        DIALECTS,
        model="fake",
        embed=embedding_of,
        resolve=backend.resolve,
        describe=backend.describe,
        hosts=hosts,
        close=store.close,
    )


@contextlib.contextmanager
def running(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The URL of a server of an application, in a thread."""
    config = uvicorn.Config(app, port=port, http=Deadline, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(SECONDS)


def until(condition: Any) -> Any:
    """Wait until a condition is true, and return what it returned."""
    end = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
    return value


class FakeBatch:
    """A batch that paints like `Fake`, an event at a step; "die" in a prompt kills the process, "slow" takes time."""

    def __init__(self) -> None:
        self.events: dict[Any, Iterator[tuple[Any, Event]]] = {}
        self.prompts: dict[Any, str] = {}

    def __len__(self) -> int:
        return len(self.events)

    def submit(self, key: Any, request: Request, preview: Preview | None = None) -> None:
        self.events[key] = Fake().stream_many({key: request}, preview)
        self.prompts[key] = " ".join(request.texts)

    def cancel(self, key: Any) -> None:
        self.events.pop(key, None)

    def step(self) -> list[tuple[Any, Event]]:
        found = []
        for key in list(self.events):
            if "die" in self.prompts[key]:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.1 if "slow" in self.prompts[key] else 0.002)
            event = next(self.events[key])
            if is_last(event[1]):
                del self.events[key]
            found.append(event)
        return found

    def close(self) -> None:
        self.events.clear()


class FakeModel:
    """The model of a worker process."""

    def batch(self, *, together: bool = False) -> FakeBatch:
        return FakeBatch()

    def resolve(self, request: Request) -> Request:
        return Fake().resolve(request)

    def describe(self, request: Request) -> dict[str, Any]:
        return Fake().describe(request)

    def embedding(self, request: Request) -> Embedding:
        return embedding_of(request)


def load() -> FakeModel:
    return FakeModel()


class ServerProcess:
    """`kandinsky22 serve` with the fake model, as a process that can be killed and started again."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.url, self.arguments = folder, f"http://127.0.0.1:{self.port}", arguments
        self.client = httpx.Client(base_url=self.url, timeout=SECONDS)
        self.start()

    def start(self, ready: str = "/livez") -> None:
        """Start it, and wait until it answers."""
        places = ["--data", str(self.folder), "--port", str(self.port)]
        command = [sys.executable, "-m", "tests.server.serve_fake", *places, *self.arguments]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)

        def answers() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return self.client.get(ready).status_code == 200
            return False

        until(answers)

    def end(self, how: signal.Signals = signal.SIGTERM) -> float:
        """End it with a signal; returns the seconds that it took."""
        start = time.monotonic()
        self.process.send_signal(how)
        self.process.communicate(timeout=SECONDS)
        return time.monotonic() - start

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
        self.client.close()
