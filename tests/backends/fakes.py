"""A backend without a network, for worker processes that start at once: prompts say what it does."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from kandinsky22.backends.work_units import WorkUnit
from kandinsky22.imaging.images import Painting
from kandinsky22.request import Defaults, Request, Sampling, Text
from kandinsky22.request.events import Event, Notice, Progress, Result, Started

K = TypeVar("K")
DEFAULTS = Defaults(
    height=64,
    width=64,
    prior=Sampling(sampler="unclip", steps=2, guidance_scale=2.0),
    decoder=Sampling(sampler="ddpm", steps=3, guidance_scale=4.0),
)
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
class FakeBackend:
    """Paints each seed in its own colour, tinted by the size of the batch, as a batch changes a real model's pixels.

    Prompts: "poison" raises KeyError, "unreachable" ConnectionResetError, "die" kills the process, "die once" kills it
    the first time in `folder`, "wait" takes ten minutes for a step. Every attempt appends its prompt to a file in
    `folder`. poison_raises: whether "poison" raises.
    """

    folder: Path
    poison_raises: bool = True

    def resolved(self, request: Request) -> Request:
        if prompt_of(request) == "refused":
            raise ValueError("the request is refused; ask for another")
        return request.resolved(DEFAULTS)

    def made_by(self, request: Request) -> dict[str, Any]:
        return dict(MADE_BY)

    def stream(self, request: Request) -> Iterator[Event]:
        for _, event in self.stream_many({0: request}):
            yield event

    def stream_many(self, requests: Mapping[Any, Request]) -> Iterator[tuple[Any, Event]]:
        requests = {key: self.resolved(request) for key, request in requests.items()}
        for key, request in requests.items():
            with (self.folder / "tried.txt").open("a") as file:
                file.write(f"{prompt_of(request)}\n")
            yield key, Started(request)
            yield key, Notice("it is only a colour")
            for i in (1, 2, 3):
                self._step(prompt_of(request))
                yield key, Progress("decoder", i, 3, lambda: Image.new("RGB", (64, 64)))
        for key, request in requests.items():
            colour = ((request.seed or 0) % 251, 40 * len(requests) % 256, 200)
            image = Image.new("RGB", (request.width or 0, request.height or 0), colour)
            yield key, Result([Painting(image, request, dict(MADE_BY))], request, 0.1)

    def _step(self, prompt: str) -> None:
        marker = self.folder / "died"
        if "poison" in prompt and self.poison_raises:
            raise KeyError("poison")
        if prompt == "unreachable":
            raise ConnectionResetError("unreachable")
        if "wait" in prompt:
            time.sleep(600)  # far longer than any test waits
        if prompt == "die" or (prompt == "die once" and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def tried(self) -> list[str]:
        """The prompts of all attempts, in order."""
        return (self.folder / "tried.txt").read_text().splitlines()


@dataclass
class FakeStreamBackend:
    """The same with `stream` alone: no batches, and no way to resolve a request without painting."""

    folder: Path

    def stream(self, request: Request) -> Iterator[Event]:
        return FakeBackend(self.folder).stream(request)


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
