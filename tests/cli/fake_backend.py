"""A backend that paints flat colours, to test what the command line prints and writes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kandinsky22.cli import paint
from kandinsky22.imaging.images import Painting
from kandinsky22.request import Defaults, Request, Sampling
from kandinsky22.request.events import Event, Notice, Progress, Result, Started

DEFAULTS = Defaults(
    height=64,
    width=64,
    prior=Sampling(sampler="unclip", steps=2, guidance_scale=2.0),
    decoder=Sampling(sampler="ddpm", steps=3, guidance_scale=4.0),
)


class FakeBackend:
    """Paints each seed in a colour of its own, and records requests and options.

    notices: texts of `Notice` events. error: raised after the first stage, if given.
    """

    def __init__(self, *, notices: tuple[str, ...] = (), error: BaseException | None = None) -> None:
        self.notices, self.error = notices, error
        self.requests: list[Request] = []
        self.options: dict[str, Any] = {}

    def stream(self, request: Request) -> Iterator[Event]:
        self.requests.append(request)
        request = request.resolved(DEFAULTS)
        yield Started(request)
        yield from map(Notice, self.notices)
        yield from (Progress("prior", i, 2) for i in (1, 2))
        if self.error is not None:
            raise self.error
        seeds = [(request.seed or 0) + k for k in range(request.num_images)]
        size = (request.width or 0, request.height or 0)
        images = [Image.new("RGB", size, (seed % 251, 100, 200)) for seed in seeds]
        yield from (Progress("decoder", i, 3, lambda: images[0]) for i in (1, 2, 3))
        pictures = [Painting(image, request.for_image(k), {"threads": 1}) for k, image in enumerate(images)]
        yield Result(pictures, request, 1.5)

    def install(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> "FakeBackend":
        """Replace every model by this backend, and change to `folder`."""
        monkeypatch.chdir(folder)
        monkeypatch.setattr(paint, "load", lambda _, options, request=None: self.options.update(options) or self)
        return self


def files(folder: Path) -> list[str]:
    """The paths of all files below a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
