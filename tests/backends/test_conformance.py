"""Every backend passes the suite in `conformance`; and events as JSON that no backend sends by itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kandinsky22 import Kandinsky
from kandinsky22.backends import event_json
from kandinsky22.backends.fake import Fake
from kandinsky22.backends.pool import Pool
from kandinsky22.request.events import Backend, Cancelled, Failed, Notice, Preview, Queued
from tests.backends.conformance import CHECKS


@pytest.fixture(scope="module", params=["kandinsky", "pool", "fake"])
def backend(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KANDINSKY22_CACHE", str(tmp_path_factory.mktemp("cache")))
        match request.param:
            case "kandinsky":
                yield Kandinsky.load(tiny_model)
            case "pool":
                with Pool.of(str(tiny_model), processes=2, threads=1) as pool:
                    yield pool
            case _:
                yield Fake()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_a_backend_conforms(backend: Backend, check: Callable[[Backend], None]) -> None:
    check(backend)


@pytest.mark.parametrize(
    "event", [Queued(3), Notice("an “ö”"), Cancelled(), *(Failed(r, "why") for r in ("refused", "error"))]
)
def test_small_events_survive_json(event: Queued | Notice | Cancelled | Failed) -> None:
    values, pictures = event_json.to_json(event)
    assert pictures == [] and event_json.from_json(values) == event


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"event": "unknown"},
        {"event": "queued"},
        {"event": "queued", "ahead": 1, "more": 2},
        {"event": "started", "process": 1, "request": {"condition": 3}},
    ],
)
def test_other_values_are_no_event(values: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        event_json.from_json(values)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("refused", ValueError),
        ("not finite", FloatingPointError),
        ("out of memory", MemoryError),
        ("error", RuntimeError),
    ],
)
def test_a_failure_has_the_exception_of_its_reason(reason: str, kind: type[Exception]) -> None:
    error = Failed(reason, "why").exception()  # type: ignore[arg-type]
    assert type(error) is kind and str(error) == "why"


@pytest.mark.parametrize("numbers", [{"every": 0}, {"side": 0}])
def test_a_preview_of_nothing_is_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="whole numbers from 1 up"):
        Preview(**numbers)
