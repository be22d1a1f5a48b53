"""Switches of diffusers that have nothing to switch here: accepted, which is said once for each."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any


def without_effect(name: str) -> Callable[..., None]:
    """A method of this name that accepts anything and changes nothing."""

    def switch(*args: Any, **kwargs: Any) -> None:
        warn_once(f"{name} changes nothing here: networks always compute in the fastest way that they have")

    return switch


@cache
def warn_once(text: str) -> None:
    """Show a warning, once per process."""
    warnings.warn(text, stacklevel=2)
