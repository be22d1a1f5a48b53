"""What happens while a request is carried out, and the protocol of whoever carries it out. Imports no torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kandinsky22.request.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from kandinsky22.imaging.images import Painting


@dataclass(frozen=True, slots=True)
class Started:
    """The request as it will be carried out, nothing left open."""

    request: Request


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the asker should know, in one sentence; the request goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Step `i` of `n` of a stage ("prior" or "decoder") is done. `preview`, if any, decodes the first picture as it is."""

    stage: str
    i: int
    n: int
    preview: "Callable[[], Image] | None" = None


@dataclass(frozen=True, slots=True)
class Result:
    """The finished pictures, the request they answer, and the seconds it took."""

    pictures: "list[Painting]"
    request: Request
    seconds: float


Event = Started | Notice | Progress | Result


class Backend(Protocol):
    """Whoever carries out requests. Closing the iterator cancels."""

    def stream(self, request: Request) -> Iterator[Event]:
        """Carry out a request, telling what happens; the last event is the `Result`."""
        ...
