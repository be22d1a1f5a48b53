"""Ray Serve replicas as the workers of a server: as many as the queue needs, and replaced without a failed request.

Needs the extra `ray`. Imports no torch in the process that uses it. Only Ray's own connections are used: Serve's HTTP
proxy stays off, since `kandinsky22.server` is the web process.
"""

import asyncio
import itertools
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, NamedTuple, Self

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from kandinsky22.backends.pool import CAPACITY, LoadKandinsky, Questions
from kandinsky22.backends.ray import Reserve, connect
from kandinsky22.backends.work_units import TRIES
from kandinsky22.backends.worker import Ask, Cancel, LoadModel, Message, Order, Question, Submit, carry_out, failed
from kandinsky22.request import Request
from kandinsky22.request.events import Cancelled, Event, Failed, Notice, Preview, is_last
from kandinsky22.threads import let_threads_sleep

NAME = "kandinsky22"  # of the application in Ray Serve
BUSY = 4  # requests of a replica, from which on another one is started
END_SECONDS = 300.0  # that a replica may take to end what it paints before it is replaced


class Replicas(NamedTuple):
    """How many replicas there are: at least `least`, and at most `most`."""

    least: int = 1
    most: int = 1


def deploy(load: LoadModel, replicas: Replicas, reserve: Reserve) -> "DeploymentHandle[Any]":
    """Start the application, or replace its model: replica by replica, while the others go on.

    The calling process is connected to a cluster. Raises `ValueError` for a model that cannot be loaded.
    """
    serve.start(proxy_location="Disabled")
    deployment: Any = serve.deployment(_Replica)
    deployment = deployment.options(
        autoscaling_config={
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": BUSY,
        },
        max_ongoing_requests=CAPACITY,
        graceful_shutdown_timeout_s=END_SECONDS,
        ray_actor_options=reserve._asdict(),
        health_check_period_s=2,
    )
    try:
        return serve.run(deployment.bind(load), name=NAME, route_prefix=None)
    except RuntimeError as error:
        raise ValueError(f"Ray Serve could not start the model: {error}") from error


class RayServe(Questions):
    """A model that Ray Serve's replicas paint with: `session`, and what `Questions` has, as for `Pool`.

    Only one per cluster, to which the calling process is connected. Raises as `deploy` does.
    """

    def __init__(self, load: LoadModel, replicas: Replicas, reserve: Reserve) -> None:
        self._handle = deploy(load, replicas, reserve)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kandinsky22-ray-serve", daemon=True)
        self._thread.start()

    @classmethod
    def of(
        cls,
        model: str,
        *,
        replicas: Replicas,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        address: str | None = None,
    ) -> Self:
        """Replicas that each load `model`. The other parameters are those of `backends.ray.RayBackend.of`."""
        connect(address)
        threads = threads or 1
        return cls(LoadKandinsky(model, device, dtype, threads), replicas, Reserve.of(device, threads))

    def session(self) -> "RayServeSession":
        """Requests that are submitted one by one, and whose events are received together."""
        return RayServeSession(self._handle, self._loop)

    def close(self, timeout: float = 0.0) -> None:
        """End the application, and leave Ray as it is."""
        if ray.is_initialized():
            serve.delete(NAME, _blocking=False)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _ask(self, method: Question, request: Request) -> Any:
        answer = asyncio.run_coroutine_threadsafe(_retried(self._handle, method, request), self._loop).result()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def _retried(handle: "DeploymentHandle[Any]", method: str, request: Request) -> Any:
    for _ in range(TRIES):
        try:
            return await handle.ask.remote(method, request)
        except RayError as error:
            last = error
    return ChildProcessError(f"the process that answers died, {TRIES} times: {last}")


class RayServeSession:
    """Requests of one caller; see `backends.pool.Session`. Any thread may use it."""

    def __init__(self, handle: "DeploymentHandle[Any]", loop: asyncio.AbstractEventLoop) -> None:
        self._paint, self._loop = handle.options(stream=True).paint, loop
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._inbox: queue.SimpleQueue[tuple[str, Event]] = queue.SimpleQueue()

    def submit(self, key: str, request: Request, preview: Preview | None = None) -> None:
        """Add a request."""
        self._call(self._start, key, self._carry_out(key, request, preview))

    def cancel(self, key: str) -> None:
        """Cancel a request; no event of it is received after a `Cancelled`."""
        self._call(self._cancel, key)

    def receive(self) -> tuple[str, Event]:
        """Wait for the next event; the last of each request is a `Result`, `Failed` or `Cancelled`."""
        return self._inbox.get()

    def close(self) -> None:
        """Cancel everything."""
        for key in list(self._tasks):
            self.cancel(key)

    def _call(self, function: Any, *values: Any) -> None:
        self._loop.call_soon_threadsafe(function, *values)

    def _start(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[key] = self._loop.create_task(work)

    def _cancel(self, key: str) -> None:
        if task := self._tasks.get(key):
            task.cancel()

    async def _carry_out(self, key: str, request: Request, preview: Preview | None) -> None:
        """Receive the events of a request, from another replica where one died."""
        last: Event = Failed("error", f"the process that painted it died, {TRIES} times")
        try:
            for tries in range(TRIES):
                if tries:
                    self._inbox.put((key, Notice("the process that painted it died; the request starts again")))
                if (event := await self._receive(key, request, preview)) is not None:
                    last = event
                    break
        except asyncio.CancelledError:
            last = Cancelled()
        except Exception as error:
            last = failed(error)
        del self._tasks[key]
        self._inbox.put((key, last))

    async def _receive(self, key: str, request: Request, preview: Preview | None) -> Event | None:
        """Hand on the events of a request, and return the last one, or None if the replica died."""
        events: Any = self._paint.remote(request, preview)
        try:
            async for event in events:
                if is_last(event):
                    last: Event = event
                    return last
                self._inbox.put((key, event))
        except RayError:
            pass
        except asyncio.CancelledError:
            events.cancel()
            raise
        return None


class _Replica:
    """A replica: a process with a model and a batch that requests join while it paints."""

    def __init__(self, load: LoadModel) -> None:
        let_threads_sleep()
        self._numbers = itertools.count()
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._inboxes: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Queue[Any]]] = {}
        started: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._receive: Callable[[Message], object] = started.put
        self._thread = threading.Thread(target=carry_out, args=(load, self._orders, self._send), daemon=True)
        self._thread.start()
        message = started.get()
        if message.kind == "broken":
            raise message.content
        self._receive = self._deliver

    def _send(self, message: Message) -> None:
        self._receive(message)

    def _deliver(self, message: Message) -> None:
        if message.job in self._inboxes:
            loop, inbox = self._inboxes[message.job]
            loop.call_soon_threadsafe(inbox.put_nowait, message.content)

    def check_health(self) -> None:
        """Called by Ray Serve. Raises `RuntimeError` if the thread that paints has ended."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that paints has ended")

    async def paint(self, request: Request, preview: Preview | None) -> AsyncGenerator[Event, None]:
        """The events of a request. Cancelling the call cancels it."""
        job, inbox = self._open()
        ended = False
        self._orders.put(Submit(job, {0: request}, preview, False))
        try:
            while not ended:
                _, event = await inbox.get()
                ended = is_last(event)
                yield event
        finally:
            del self._inboxes[job]
            if not ended:
                self._orders.put(Cancel(job))

    async def ask(self, method: Question, request: Request) -> Any:
        """What a method of the model returns or raises."""
        job, inbox = self._open()
        self._orders.put(Ask(job, method, request))
        try:
            return await inbox.get()
        finally:
            del self._inboxes[job]

    def _open(self) -> tuple[int, "asyncio.Queue[Any]"]:
        job, inbox = next(self._numbers), asyncio.Queue[Any]()
        self._inboxes[job] = asyncio.get_running_loop(), inbox
        return job, inbox
