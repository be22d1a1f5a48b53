"""A backend without a network, for processes that are to start in a blink: it does what its prompts say."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from kandinsky22.imaging.images import Painting
from kandinsky22.request import Defaults, Request, Sampling, Text
from kandinsky22.request.events import Event, Notice, Progress, Result, Started

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


@dataclass
class Obedient:
    """Paints every seed in its own colour, tinted by how many are painted together, as company changes pixels.

    "poison" raises, "unreachable" as if it were far away, "die" ends the process by a signal, "die once" does the first time
    in `folder`, "wait" takes ten seconds for a step. Every prompt is written down in `folder`, a line each time it is tried.
    """

    folder: Path

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
                self._obey(prompt_of(request))
                yield key, Progress("decoder", i, 3, lambda: Image.new("RGB", (64, 64)))
        for key, request in requests.items():
            colour = ((request.seed or 0) % 251, 40 * len(requests) % 256, 200)
            image = Image.new("RGB", (request.width or 0, request.height or 0), colour)
            yield key, Result([Painting(image, request, dict(MADE_BY))], request, 0.1)

    def _obey(self, prompt: str) -> None:
        marker = self.folder / "died"
        if "poison" in prompt:
            raise KeyError("poison")
        if prompt == "unreachable":
            raise ConnectionResetError("unreachable")
        if "wait" in prompt:
            time.sleep(10)
        if prompt == "die" or (prompt == "die once" and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def tried(self) -> list[str]:
        return (self.folder / "tried.txt").read_text().splitlines()


@dataclass
class Plain:
    """The same, one request at a time, and nothing told of it beforehand."""

    folder: Path

    def stream(self, request: Request) -> Iterator[Event]:
        return Obedient(self.folder).stream(request)


@dataclass(frozen=True)
class Hiring:
    """What makes an `Obedient` in a process. `how`: "fails" raises, "dies" ends the process, while it loads."""

    folder: Path
    how: str = "works"

    def __call__(self) -> Obedient:
        if self.how == "fails":
            raise ValueError("there is no such model; name another")
        if self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return Obedient(self.folder)
