"""The events of a running request, and the protocol of what runs requests. Imports no torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kandinsky22.request.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from kandinsky22.imaging.images import Painting


@dataclass(frozen=True, slots=True)
class Started:
    """The resolved request, sent before the first network runs."""

    request: Request


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning for the user, in one sentence; the request continues."""

    text: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Step `i` of `n` of a stage ("prior" or "decoder") is done.

    `preview`, if set, decodes the first unfinished picture.
    """

    stage: str
    i: int
    n: int
    preview: "Callable[[], Image] | None" = None


@dataclass(frozen=True, slots=True)
class Result:
    """The finished pictures, the resolved request, and the seconds it took."""

    pictures: "list[Painting]"
    request: Request
    seconds: float


Event = Started | Notice | Progress | Result


class Backend(Protocol):
    """Runs requests: a `Kandinsky` in this process, or one of the classes in `kandinsky22.backends`."""

    def stream(self, request: Request) -> Iterator[Event]:
        """Run a request and yield its events; the last is the `Result`. Closing the iterator cancels it."""
        ...
