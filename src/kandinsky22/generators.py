"""Generators that return a value. Imports nothing."""

from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

Y = TypeVar("Y")
R = TypeVar("R")


class Returning(Generic[Y, R]):
    """Iterates over a generator and keeps what it returns in `value`.

    `value` exists once the iteration has ended:

        steps = Returning(stage)
        for step in steps:
            ...
        latents = steps.value
    """

    value: R

    def __init__(self, generator: Generator[Y, None, R]) -> None:
        self._generator = generator

    def __iter__(self) -> Iterator[Y]:
        self.value = yield from self._generator


def drain(generator: Generator[object, None, R]) -> R:
    """Run a generator to its end and return its value."""
    steps = Returning(generator)
    for _ in steps:
        pass
    return steps.value
