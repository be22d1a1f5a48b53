"""A backend without a network, and its model for worker processes, which start at once: prompts say what they do."""

import os
import signal
import time
from collections.abc import Generator, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from kandinsky22.backends.fake import Fake
from kandinsky22.backends.work_units import WorkUnit
from kandinsky22.request import Request, Text
from kandinsky22.request.events import Event, Failed, Notice, Preview, Progress, Result, Started, is_last

K = TypeVar("K", bound=Hashable)
MADE_BY = {"weights": {"unet": "abc"}, "dtype": "float32", "kandinsky22": "0", "torch": "0", "threads": 1}


def prompt_of(request: Request) -> str:
    assert isinstance(request.condition, Text)
    return request.condition.prompt


def units_of(requests: Mapping[K, Request], size: int) -> Iterator[WorkUnit[K]]:
    """Requests in work units of `size`, in order."""
    items = iter(requests.items())
    while unit := dict(islice(items, size)):
        yield WorkUnit(unit)


@dataclass
class FakeBackend(Fake):
    """Tints pictures by the number of requests painted together, as that changes a real model's pixels.

    Prompts: "poison" fails, "die" kills the process, "die once" kills it the first time in `folder`, "wait" takes ten
    minutes for a step, "until asked" makes steps until there is a file "asked" in `folder`, "refused" is refused.
    Every attempt appends its prompt to a file in `folder`. poison_fails: whether "poison" fails.
    """

    folder: Path
    poison_fails: bool = True

    def resolve(self, request: Request) -> Request:
        if prompt_of(request) == "refused":
            raise ValueError("the request is refused; ask for another")
        return super().resolve(request)

    def describe(self, request: Request) -> dict[str, Any]:
        return dict(MADE_BY)

    def stream_many(
        self, requests: Mapping[K, Request], preview: Preview | None = None, *, together: bool = False
    ) -> Generator[tuple[K, Event], None, None]:
        poisoned = {key for key, request in requests.items() if self.poison_fails and "poison" in prompt_of(request)}
        for key, event in super().stream_many(requests, preview, together=together):
            prompt = prompt_of(requests[key])
            if isinstance(event, Started):
                with (self.folder / "tried.txt").open("a") as file:
                    file.write(f"{prompt}\n")
                yield key, event
                yield key, Failed("error", "KeyError: 'poison'") if key in poisoned else Notice("it is only a colour")
            elif key not in poisoned or isinstance(event, Failed):
                if isinstance(event, Progress):
                    self._step(prompt)
                    while prompt == "until asked" and not (self.folder / "asked").exists():
                        yield key, event
                yield key, tinted(event, len(requests)) if isinstance(event, Result) else event

    def _step(self, prompt: str) -> None:
        marker = self.folder / "died"
        if "wait" in prompt:
            time.sleep(600)  # far longer than any test waits
        if prompt == "die" or (prompt == "die once" and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def tried(self) -> list[str]:
        """The prompts of all attempts, in order."""
        return (self.folder / "tried.txt").read_text().splitlines()

    def batch(self, *, together: bool = False) -> "FakeBatch":
        """As `request.events.Model` has it."""
        return FakeBatch(self, together)


def tinted(result: Result, number: int) -> Result:
    """A result in a shade for the number of requests that were painted together."""
    shade = Image.new("RGB", result.pictures[0].image.size, (0, 0, 40 * number % 256))
    return replace(result, pictures=[replace(p, image=Image.blend(p.image, shade, 0.5)) for p in result.pictures])


@dataclass
class FakeBatch:
    """A batch of a fake backend: a step takes the next event of every request; together, of all as one stream."""

    backend: FakeBackend
    together: bool
    left: set[Hashable] = field(default_factory=set)
    unit: dict[Hashable, Request] = field(default_factory=dict)
    streams: dict[Hashable, Iterator[tuple[Hashable, Event]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.left)

    def submit(self, key: Hashable, request: Request, preview: Preview | None = None) -> None:
        request = self.backend.resolve(request)
        self.left.add(key)
        if self.together:
            self.unit[key] = request
        else:
            self.streams[key] = self.backend.stream_many({key: request}, preview)

    def cancel(self, key: Hashable) -> None:
        self.left.discard(key)
        self.streams.pop(key, None)

    def step(self) -> list[tuple[Hashable, Event]]:
        if self.unit:
            self.streams["unit"], self.unit = self.backend.stream_many(self.unit, together=True), {}
        events = [event for stream in self.streams.values() if (event := next(stream, None)) is not None]
        self.left -= {key for key, event in events if is_last(event)}
        return events

    def close(self) -> None:
        self.left.clear()
        self.streams.clear()


@dataclass(frozen=True)
class LoadFake:
    """Loads a `FakeBackend` in a worker process. mode: "fails" raises while loading, "dies" kills the process."""

    folder: Path
    mode: str = "works"

    def __call__(self) -> FakeBackend:
        if self.mode == "fails":
            raise ValueError("there is no such model; name another")
        if self.mode == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return FakeBackend(self.folder)
