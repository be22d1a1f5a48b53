"""Asks before work that takes far longer than a picture usually does, which a slip of a digit may have asked for."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from kandinsky22.console import echo
from kandinsky22.request import Request

if TYPE_CHECKING:
    from kandinsky22.engine.kandinsky import Kandinsky
    from kandinsky22.request.events import Backend

LARGE = 32  # times the work of the model's usual picture, below which nothing is estimated
LONG = 600.0  # seconds that need no question


def confirm(backend: "Backend", request: Request, *, frames: int = 1, yes: bool = False) -> None:
    """Ask whether to paint a large request, of which there are `frames`; it returns if that is small, or wanted.

    yes: --yes was given. Raises `ValueError` with an estimate where nobody can be asked, or the answer is no.
    """
    from kandinsky22.engine.kandinsky import Kandinsky

    if yes or not isinstance(backend, Kandinsky):
        return
    request = backend.resolve(replace(request, seed=request.seed or 0))  # any seed, so that none is drawn twice
    usual = backend.defaults.height * backend.defaults.width * (backend.defaults.decoder.steps or 1)
    asked = (request.height or 0) * (request.width or 0) * (request.decoder.steps or 1) * request.num_images * frames
    if asked <= LARGE * usual or (seconds := _seconds(backend, request) * frames) <= LONG:
        return
    backend.check_memory([(request.num_images, *backend.canvas(request).size)])  # raises for what is impossible
    estimate = f"this takes about {_duration(seconds)}, and {asked / usual:.0f} times the work of a usual picture"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ValueError(f"{estimate}; ask for less, or add --yes")
    echo(f"{estimate}; go on? [y/N] ", end="", error=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ValueError("nothing was painted; ask for less, or add --yes")


def _seconds(model: "Kandinsky", request: Request) -> float:
    """The time that a resolved request takes on this machine, measured with one convolution."""
    from kandinsky22.engine import cost

    prior, first = model.stored.prior, model.stored.first
    work = cost.work(
        prior.text_encoder.config,
        prior.prior.config,
        first.unet.config,
        first.movq.config,
        height=request.height or 0,
        width=request.width or 0,
    )
    operations = work.of_a_picture(request.prior.network_calls, request.decoder.network_calls) * request.num_images
    return operations / cost.rate(model.device, model.networks.dtype)


def _duration(seconds: float) -> str:
    """A time in its largest fitting unit."""
    for unit, length in (("days", 86_400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"
