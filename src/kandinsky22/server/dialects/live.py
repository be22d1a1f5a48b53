"""One stream of events for all of a client's jobs, as part of `/api/v1`: browsers allow few connections to a host."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from kandinsky22.request.events import Event, Notice, Progress
from kandinsky22.server.app import Services
from kandinsky22.server.dialects.common import NO_CACHE, Asker, with_pauses
from kandinsky22.server.dialects.native import event_values, job_view
from kandinsky22.server.live_job import LiveJob
from kandinsky22.server.store import Key

MAX_BEHIND = 1000  # events that a client may be behind; then its stream ends, and it connects again


def router(services: Services) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.get("/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
    async def events(key: Asker) -> StreamingResponse:
        """The events of all your jobs as server-sent events, first where those stand that have not ended.

        `job`: a job as `/jobs/{job}` returns it, whenever its state changes. `progress` and `notice`: with the job's id
        as `job`. `ready`: all jobs that had not ended were sent. `positions`: by id, how many jobs start before.
        """
        return StreamingResponse(_stream(services, key), media_type="text/event-stream", headers=NO_CACHE)

    return routes


async def _stream(services: Services, key: Key) -> AsyncIterator[bytes]:
    inbox: asyncio.Queue[tuple[LiveJob, Event]] = asyncio.Queue(MAX_BEHIND)
    behind = False

    def observe(live: LiveJob, event: Event) -> None:
        nonlocal behind
        try:
            inbox.put_nowait((live, event))
        except asyncio.QueueFull:
            behind = True

    async def arriving() -> AsyncIterator[tuple[LiveJob, Event]]:
        stopped = asyncio.ensure_future(services.queue.stopped.wait())
        try:
            while not behind and not stopped.done():
                arrival = asyncio.ensure_future(inbox.get())
                await asyncio.wait({arrival, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not arrival.done():
                    arrival.cancel()
                    return
                yield arrival.result()
        finally:
            stopped.cancel()

    services.queue.observers.append(observe)
    try:
        positions: dict[str, int] = {}
        for live in services.queue.active(key.name):
            yield _block("job", (await job_view(services, live)).model_dump())
            for event in _recent(live):
                yield await _of(services, live, event)
        yield _block("ready", {})
        async for item in with_pauses(arriving()):
            if item is None:
                yield b": waiting\n\n"
                continue
            live, event = item
            if live.job.owner == key.name:
                yield await _of(services, live, event)
            now = {
                job.job.id: place
                for job in services.queue.active(key.name)
                if (place := services.queue.position(job)) is not None
            }
            if now != positions and inbox.empty():
                positions = now
                yield _block("positions", positions)
    finally:
        services.queue.observers.remove(observe)


def _recent(live: LiveJob) -> list[Event]:
    """The notices of a job, and its latest progress, with the latest preview."""
    events = [event for _, event in live.events]
    progress = [event for event in events if isinstance(event, Progress)]
    previews = [event for event in progress if event.preview is not None]
    return [*(event for event in events if isinstance(event, Notice)), *previews[-1:], *progress[-1:]]


async def _of(services: Services, live: LiveJob, event: Event) -> bytes:
    if isinstance(event, Progress | Notice):
        values = event_values(live, event)
        return _block(values.pop("event"), values | {"job": live.job.id})
    return _block("job", (await job_view(services, live)).model_dump())


def _block(kind: str, values: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(values, ensure_ascii=False)}\n\n".encode()
