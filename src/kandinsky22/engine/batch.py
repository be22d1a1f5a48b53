"""A batch that requests join while it runs: each moves on by itself, and what networks are asked is answered together.

A request waits until there is room, is started, and is then a task (`engine.painting`) among others; `engine.scheduler`
says whose turn it is. It leaves with its result as soon as that is ready, with its failure, or cancelled; the others do
not notice.
"""

import logging
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from kandinsky22.engine import memory
from kandinsky22.engine.calls import Calls
from kandinsky22.engine.embedding_cache import EmbeddingCache
from kandinsky22.engine.painting import Painter
from kandinsky22.engine.scheduler import ALL, Finished, Raised, Scheduler
from kandinsky22.request import Request
from kandinsky22.request.events import Cancelled, Event, Failed, Notice, Preview, Queued, Reason, Result, is_last

if TYPE_CHECKING:
    from kandinsky22.engine.kandinsky import Kandinsky

K = TypeVar("K", bound=Hashable)
MAX_ROWS = 16  # pictures at a time; more gain nothing on a CPU (docs/performance.md)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A request that is not finished, its size, the model that paints it, and whether it was begun again in float32."""

    request: Request
    preview: Preview | None
    size: memory.Size
    model: "Kandinsky"
    again: bool = False


class Batch(Generic[K]):
    """Requests by key, painted side by side by one model.

    One thread owns a batch: all its methods are called by that thread, which calls `step` until the batch is empty.
    Between two steps it may submit and cancel. A step is one network call, so it is as short as the model allows.

        batch = Batch(Kandinsky.load())
        batch.submit("a", text2img("a red star"))
        while len(batch):
            for key, event in batch.step():
                ...

    max_rows: the most pictures that are painted at a time; requests beyond wait in order, and a request with more
    pictures than that has several calls per step. None: `MAX_ROWS`, and no more than fit into memory by
    `engine.memory`'s estimate. together: the requests, all submitted before the first step, are one fixed batch that
    takes nothing from a cache: their pictures have the same bytes whenever and wherever they are painted.
    """

    def __init__(self, model: "Kandinsky", *, max_rows: int | None = None, together: bool = False) -> None:
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows must be a whole number from 1 up, got {max_rows}")
        self.model, self.together = model, together
        self.max_rows = ALL if together else max_rows or MAX_ROWS
        self._cache = EmbeddingCache() if together else None
        self._waiting: OrderedDict[K, _Entry] = OrderedDict()
        self._active: dict[K, _Entry] = {}
        self._events: list[tuple[K, Event]] = []
        self._calls = Calls(self.max_rows)
        one_network = model.networks.placement != "keep"
        self._scheduler: Scheduler[K] = Scheduler(memory.is_exhausted, one_network=one_network)
        self._in_float32: Kandinsky | None = None

    def __len__(self) -> int:
        """Requests whose last event has not been returned yet."""
        return len(self._waiting) + len(self._active) + sum(is_last(event) for _, event in self._events)

    def submit(self, key: K, request: Request, preview: Preview | None = None) -> Request:
        """Add a request, which joins as soon as there is room; returns it resolved.

        Raises `ValueError` for a request that cannot be carried out, or does not fit into memory, and for a key that is
        in use.
        """
        if key in self._waiting or key in self._active:
            raise ValueError(f"{key!r} is already in this batch; give another key")
        request = self.model.resolve(request)
        size = (request.num_images, *self.model.canvas(request).size)
        self.model.check_memory([size])
        self._events.append((key, Queued(len(self._waiting))))
        self._waiting[key] = _Entry(request, preview, size, self.model)
        return request

    def cancel(self, key: K) -> None:
        """Remove a request before the next network call; the next step returns `Cancelled`. Others are ignored."""
        if key in self._active:
            del self._active[key]
            self._scheduler.remove(key)
        elif self._waiting.pop(key, None) is None:
            return
        self._events.append((key, Cancelled()))

    def close(self) -> None:
        """Cancel everything, and free what was computed."""
        self._waiting.clear()
        self._active.clear()
        self._events.clear()
        self._scheduler.close()

    @torch.inference_mode()
    def step(self) -> list[tuple[K, Event]]:
        """Start what there is room for, make one network call, and return what happened since the last step."""
        self._start_waiting()
        for key, outcome in self._scheduler.step():
            if isinstance(outcome, Finished):
                self._leave(key, outcome.value)
            elif isinstance(outcome, Raised):
                self._fail(key, outcome.error)
            else:
                self._events.append((key, outcome))
        events, self._events = self._events, []
        return events

    def _start_waiting(self) -> None:
        while self._waiting:
            key, entry = next(iter(self._waiting.items()))
            if self._active and not self._has_room(entry.size):
                return
            del self._waiting[key]
            self._start(key, entry)

    def _has_room(self, size: memory.Size) -> bool:
        """Whether a request of a size may start beside those that run."""
        if self.together:
            return True
        sizes = [*(entry.size for entry in self._active.values()), size]
        if sum(pictures for pictures, _, _ in sizes) > self.max_rows:
            return False
        try:
            self.model.check_memory(sizes)
        except ValueError:
            return False
        return True

    def _start(self, key: K, entry: _Entry) -> None:
        self._active[key] = entry
        try:
            painter = Painter(entry.model, entry.request, self._calls, entry.preview)
        except Exception as error:  # a picture cannot be read, for example
            self._fail(key, error)
        else:
            self._scheduler.add(key, painter.paint(self._cache))

    def _leave(self, key: K, event: Result | Failed) -> None:
        del self._active[key]
        self._events.append((key, event))
        if not any(entry.again for entry in self._active.values()):
            self._in_float32 = None

    def _fail(self, key: K, error: Exception) -> None:
        entry = self._active[key]
        reason: Reason = "error"
        if isinstance(error, FloatingPointError):
            reason = "not finite"
            if not entry.again and entry.model.dtype != torch.float32 and self._fits_in_float32(entry.size):
                self._events.append((key, Notice(f"{error}; it is painted again in float32")))
                assert self._in_float32 is not None
                self._start(key, replace(entry, model=self._in_float32, again=True))
                return
        elif memory.is_exhausted(error):
            reason, error = "out of memory", MemoryError("memory ran out; ask for smaller pictures, or fewer at a time")
        elif isinstance(error, ValueError):
            reason = "refused"
        else:
            logger.error("a request failed", exc_info=error)
        text = str(error) if reason != "error" else f"{type(error).__name__}: {error}"
        self._leave(key, Failed(reason, " ".join(text.split())))

    def _fits_in_float32(self, size: memory.Size) -> bool:
        """Whether there is memory for the model in float32 beside this one; it is then ready."""
        try:
            if self._in_float32 is None:
                self._in_float32 = self.model.in_float32()
            self._in_float32.check_memory([size])
        except ValueError:
            self._in_float32 = None
            return False
        return True
