"""Events of requests as JSON values, with pictures as PNG files beside them. Imports no torch."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kandinsky22.imaging.images import Painting
from kandinsky22.request import Request
from kandinsky22.request.events import Cancelled, Event, Failed, Notice, Progress, Queued, Result, Started

EVENTS: dict[str, type[Event]] = {
    kind.__name__.lower(): kind for kind in (Queued, Started, Notice, Progress, Result, Failed, Cancelled)
}


def to_json(event: Event) -> tuple[dict[str, Any], list[bytes]]:
    """An event as JSON values, and its pictures as PNG files: those of a result, or a preview."""
    kind = type(event).__name__.lower()
    match event:
        case Started(request, process):
            return {"event": kind, "request": json.loads(request.to_json()), "process": process}, []
        case Progress(stage, i, n, preview):
            return {"event": kind, "stage": stage, "i": i, "n": n}, [] if preview is None else [preview]
        case Result(pictures, request, seconds):
            values = {"event": kind, "request": json.loads(request.to_json()), "seconds": seconds}
            return values, [picture.to_png() for picture in pictures]
        case _:
            return {"event": kind, **{name: getattr(event, name) for name in event.__slots__}}, []


def from_json(values: Mapping[str, Any], pictures: Sequence[bytes] = ()) -> Event:
    """The event of `to_json`'s values. Raises `ValueError` for others."""
    try:
        fields = dict(values)
        kind = EVENTS[fields.pop("event")]
        if "request" in fields:
            fields["request"] = Request.from_json(json.dumps(fields["request"]))
        if kind is Result:
            fields["pictures"] = [Painting.from_png(picture) for picture in pictures]
        elif pictures:
            (fields["preview"],) = pictures
        return kind(**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is not an event of a request: {error}") from None
