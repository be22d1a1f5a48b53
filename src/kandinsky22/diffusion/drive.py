"""Runs a sampler by answering its questions and passing on its states.

Nothing is computed before the next state is asked for, and closing the iterator closes the sampler.
"""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from kandinsky22.diffusion.prediction import Prediction
from kandinsky22.diffusion.samplers import Ask, Now, Sampler

Constrain: TypeAlias = Callable[[Tensor, int], Tensor]
"""(x, t) -> the state to continue from, shaped like x"""


def keep(x: Tensor, t: int) -> Tensor:
    """No constraint."""
    return x


class Job(NamedTuple):
    """A sampler, and a constraint on its states, as in inpainting."""

    sampler: Sampler
    constrain: Constrain = keep

    def events(self) -> Generator[Ask | Now, Prediction | None, None]:
        """Yields every `Ask`, to be sent its prediction, and every `Now` with its state constrained; the last one has
        t = -1."""
        reply: Any = None
        with closing(self.sampler):
            while True:
                try:
                    event = self.sampler.send(reply)
                except StopIteration:
                    return
                if isinstance(event, Ask):
                    reply = yield event
                else:
                    reply = self.constrain(event.x, event.t)
                    yield Now(reply, event.t)


def sample(
    sampler: Sampler, denoise: Callable[[Tensor, int], Prediction], constrain: Constrain = keep
) -> Generator[Now, None, None]:
    """Runs a sampler: yields every state, constrained, as the sampler reaches it; the last one has t = -1.

    `denoise(x, t)` predicts for x [B, ...]; `constrain(x, t)` returns the state to go on from, shaped like x.
    """
    with closing(Job(sampler, constrain).events()) as events:
        reply: Prediction | None = None
        while True:
            try:
                event = events.send(reply)
            except StopIteration:
                return
            reply = None
            if isinstance(event, Ask):
                reply = denoise(event.x, event.t)
            else:
                yield event
