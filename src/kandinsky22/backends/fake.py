"""A backend without a network, to test programs that use one: each request becomes a picture of one colour."""

import os
from collections.abc import Generator, Hashable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from PIL import Image

from kandinsky22.imaging.images import Painting
from kandinsky22.request import Defaults, Request, Sampling
from kandinsky22.request.events import Event, Failed, Preview, Progress, Queued, Result, Started
from kandinsky22.request.parts import EVERYWHERE

K = TypeVar("K", bound=Hashable)
STEPS = 2
STAGE = Sampling(sampler="ddpm", steps=STEPS, guidance_scale=4.0)
DECODER = replace(STAGE, guidance_interval=EVERYWHERE, reuse=1)
DEFAULTS = Defaults(height=64, width=64, prior=STAGE, decoder=DECODER)


class Fake:
    """The protocol `Backend`. The colour follows from the seed; "fail" as a prompt's only word fails.

    for event in stream(Fake(), text2img("a red star", seed=1)):
        ...
    """

    def stream_many(
        self, requests: Mapping[K, Request], preview: Preview | None = None, *, together: bool = False
    ) -> Generator[tuple[K, Event], None, None]:
        for key, request in requests.items():
            try:
                request = self.resolve(request)
            except ValueError as error:
                yield key, Failed("refused", str(error))
                continue
            yield key, Queued(0)
            yield key, Started(request, os.getpid())
            if request.texts == ("fail",):
                yield key, Failed("error", "it was asked to fail")
                continue
            pictures = [self._paint(request.for_image(k)) for k in range(request.num_images)]
            yield from ((key, Progress("prior", i, STEPS)) for i in range(1, STEPS + 1))
            png = pictures[0].to_png() if preview else None
            yield from ((key, Progress("decoder", i, STEPS, png)) for i in range(1, STEPS + 1))
            yield key, Result(pictures, request, seconds=0.0)

    def _paint(self, request: Request) -> Painting:
        assert request.seed is not None and request.width is not None and request.height is not None
        image = Image.new("RGB", (request.width, request.height), (request.seed % 256, request.seed * 7 % 256, 90))
        return Painting(image, request, self.describe(request))

    def resolve(self, request: Request) -> Request:
        return request.resolved(DEFAULTS)

    def describe(self, request: Request) -> dict[str, Any]:
        return {"weights": {"fake": "0"}, "device": "none"}
