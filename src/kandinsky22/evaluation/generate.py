"""Painting the captions of a run folder with any backend; see `backends.run_painting`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from kandinsky22.backends.run_folder import UNSHARDED, Shard
from kandinsky22.backends.run_painting import RunProgress, started
from kandinsky22.backends.run_state import failed
from kandinsky22.backends.work_units import Failure, UnitPainter
from kandinsky22.evaluation.captions import Captions
from kandinsky22.evaluation.manifest import Run, as_template, items, with_item
from kandinsky22.request import Request
from kandinsky22.request.events import Backend

MAX_FAILURES_IN_A_ROW = 10  # so many suggest that something other than the captions is wrong


def as_painter(backend: Backend | UnitPainter) -> UnitPainter:
    """A painter of work units; a backend by itself paints each request alone, one after the other."""
    return backend if isinstance(backend, UnitPainter) else UnitPainter(backend)


def open_run(
    backend: Backend | UnitPainter,
    folder: Path,
    captions: Captions,
    request: Request,
    *,
    seed: int = 0,
    check: Callable[[Request], None] = lambda template: None,
    annotations: Callable[[], Mapping[str, Any]] = dict,
) -> Run:
    """The run of a folder, created if there is none: each caption replaces the prompt and the seed of `request`.

    check: called with the resolved request before anything is written; it may raise. seed, annotations: see
    `Run.create_or_open`. Raises `ValueError` as that does, and for a request that the backend refuses.
    """
    painter = as_painter(backend)
    first = items(captions, seed)[0]
    template = painter.backend.resolve(with_item(as_template(request), first))
    made_by = painter.backend.describe(template)
    check(template)
    return Run.create_or_open(
        folder, captions, template, made_by, batch=painter.batch, seed=seed, annotations=annotations
    )


def generate(
    backend: Backend | UnitPainter,
    run: Run,
    *,
    shard: Shard = UNSHARDED,
    retry: bool = False,
    max_units: int | None = None,
    least: int = 1,
) -> Iterator[RunProgress]:
    """Paint what is left of a shard; yields the progress before the first picture and after each.

    retry: captions that failed before are tried again. max_units: paint no more work units than this. least: the number
    of pictures below which the run is of no use. Closing the iterator stops between two steps of painting.

    Raises as `run_painting.started` does, and `ValueError` for a backend whose weights are not those of the run, after
    ten captions failed in a row (which are then not recorded), and as soon as so many have failed that fewer than
    `least` pictures are possible.
    """
    painter = as_painter(backend)
    with started(painter, run, shard, retry=retry) as painting:
        least_for_now = 1 if retry else least  # captions that are tried again may succeed
        _check_enough_left(run, least_for_now)
        yield painting.progress()
        pending: list[Failure[str]] = []  # failures since the last success
        with closing(painter.paint(map(run.work_unit, painting.units[:max_units]))) as outcomes:
            for outcome in outcomes:
                painting.check_in_place()
                if isinstance(outcome, Failure):
                    pending.append(outcome)
                    if len(pending) == MAX_FAILURES_IN_A_ROW:
                        raise ValueError(
                            f"{MAX_FAILURES_IN_A_ROW} captions in a row failed, the last because: {outcome.error}"
                        )
                    painting.count(outcome)
                else:
                    painting.save(outcome)
                    painting.log_failures(pending)
                    if pending:
                        _check_enough_left(run, least_for_now)
                    pending.clear()
                yield painting.progress()
        painting.log_failures(pending)
        _check_enough_left(run, least)


def _check_enough_left(run: Run, least: int) -> None:
    lost, total = len(failed(run)), len(run.items)
    if total - lost < least:
        raise ValueError(
            f"{lost} of {total} captions failed, and the numbers need {least} pictures; see failed-*.jsonl in "
            f"{run.folder}, then try these again with --retry, or give more captions in another folder"
        )
