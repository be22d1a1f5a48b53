"""What every backend does: functions that take a backend and fail if it does not."""

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from kandinsky22 import Mask, Picture, Request, Text, text2img
from kandinsky22.backends import event_json
from kandinsky22.request.events import (
    Backend,
    Event,
    Failed,
    Notice,
    Preview,
    Progress,
    Queued,
    Result,
    Started,
    is_last,
    stream,
)

STAGES = ("prior", "decoder")
HOLE = np.zeros((30, 90), np.float32)
HOLE[10:20] = 1
REFUSED = Request(condition=Text(""), mask=Mask(image=Picture.of(np.zeros((30, 90))), area=Picture.of(HOLE, mask=True)))
"""A request that no model can paint: its picture is too small."""


def requests(count: int = 4) -> dict[str, Request]:
    options: dict[str, Any] = {"height": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2}
    return {
        f"request {k}": text2img("a ring", seed=k, width=64 + 64 * (k % 2), num_images=1 + k // 3, **options)
        for k in range(count)
    }


def events_of(
    backend: Backend, requests: Mapping[str, Request], preview: Preview | None = None, **options: Any
) -> dict[str, list[Event]]:
    """The events of each request, in order."""
    events: dict[str, list[Event]] = {key: [] for key in requests}
    for key, event in backend.stream_many(requests, preview, **options):
        events[key].append(event)
    return events


def check_order(backend: Backend) -> None:
    """Queued, Started, the steps of each stage in order with notices between them, and one last event."""
    for key, events in events_of(backend, requests()).items():
        assert [type(event) for event in events[:2]] == [Queued, Started], key
        assert [is_last(event) for event in events] == [False] * (len(events) - 1) + [True]
        assert isinstance(events[-1], Result)
        steps = [event for event in events[2:-1] if not isinstance(event, Notice)]
        assert all(isinstance(step, Progress) and step.preview is None for step in steps)
        places = [(STAGES.index(step.stage), step.i / step.n) for step in steps if isinstance(step, Progress)]
        assert places == sorted(places) and places[-1] == (1, 1)


def check_results(backend: Backend) -> None:
    """As many pictures as were asked for, of the size that was asked for, each with its own request."""
    for key, request in requests().items():
        started, result = (events_of(backend, {key: request})[key][k] for k in (1, -1))
        assert isinstance(result, Result) and isinstance(started, Started)
        assert started.request == result.request == backend.resolve(request)
        assert len(result.pictures) == request.num_images
        for k, picture in enumerate(result.pictures):
            assert picture.image.size == (request.width, request.height)
            assert picture.request == result.request.for_image(k)


def check_refusal(backend: Backend) -> None:
    """A refused request fails, and nobody else; `stream` and `resolve` raise."""
    events = events_of(backend, {**requests(2), "refused": REFUSED, **{"last": requests(3)["request 2"]}})
    failed = events.pop("refused")[-1]
    assert isinstance(failed, Failed) and failed.reason == "refused" and "enlarge it" in failed.error
    assert all(isinstance(some[-1], Result) for some in events.values())
    with pytest.raises(ValueError, match="enlarge it"):
        list(stream(backend, REFUSED))
    with pytest.raises(ValueError, match="enlarge it"):
        backend.resolve(REFUSED)


def check_cancelling(backend: Backend) -> None:
    """Closing the generator cancels; the backend goes on."""
    with closing(backend.stream_many(requests())) as events:
        next(events)
        next(events)
    with pytest.raises(StopIteration):
        next(events)
    for events in events_of(backend, requests(2)).values():
        assert isinstance(events[-1], Result)


def check_together(backend: Backend) -> None:
    """The same bytes each time, whatever was painted in between, and the pictures that each request gets alone."""

    def paint() -> dict[str, list[bytes]]:
        results = {key: events[-1] for key, events in events_of(backend, requests(), together=True).items()}
        return {key: [picture.to_png() for picture in result.pictures] for key, result in results.items()}  # type: ignore[union-attr]

    first = paint()
    list(stream(backend, requests()["request 1"]))
    assert paint() == first


def check_resolving(backend: Backend) -> None:
    """Every field is filled in, and a resolved request stays as it is."""
    resolved = backend.resolve(text2img("a ring"))
    assert resolved.seed is not None and resolved.width is not None and resolved.decoder.steps is not None
    assert backend.resolve(resolved) == resolved
    assert backend.resolve(Request.from_json(resolved.to_json())) == resolved


def check_description(backend: Backend) -> None:
    """It is JSON, and names the weights."""
    described = backend.describe(backend.resolve(text2img("a ring", seed=1)))
    assert json.loads(json.dumps(described)) == described
    assert described["weights"]


def check_json(backend: Backend) -> None:
    """Every event survives being written and read, previews and pictures included."""
    asked = {**requests(), "refused": REFUSED}
    kinds = set()
    for events in events_of(backend, asked, Preview(side=8)).values():
        for event in events:
            values, pictures = event_json.to_json(event)
            read = event_json.from_json(json.loads(json.dumps(values)), pictures)
            kinds.add(type(event))
            if isinstance(event, Result):
                assert isinstance(read, Result) and (read.request, read.seconds) == (event.request, event.seconds)
                assert [p.to_png() for p in read.pictures] == [p.to_png() for p in event.pictures]
            else:
                assert read == event
    assert kinds >= {Queued, Started, Progress, Result, Failed}


def check_previews(backend: Backend) -> None:
    """Some progress of the decoder carries a preview, if previews are asked for."""
    (events,) = events_of(backend, requests(1), Preview(every=2)).values()
    steps = [event for event in events if isinstance(event, Progress)]
    assert all(step.preview is None for step in steps if step.stage == "prior")
    assert steps[-1].preview is not None


def check_nothing(backend: Backend) -> None:
    """No requests have no events, and leave nothing to do."""
    for _ in range(3):
        assert events_of(backend, {}) == {} == events_of(backend, {}, together=True)
    check_results(backend)


CHECKS: tuple[Callable[[Backend], None], ...] = (
    check_order,
    check_results,
    check_refusal,
    check_cancelling,
    check_together,
    check_resolving,
    check_description,
    check_json,
    check_previews,
    check_nothing,
)
