"""Painting the pictures of a run folder with any backend.

A run that was killed resumes, and ends with the same pictures.

A picture is written under a temporary name, logged and then moved to its final name, so every picture with its final
name is complete and in the log. A work unit is finished when each of its items has a picture or has failed; any other
is painted again as one batch, which gives its pictures the same bytes, since a picture depends on its request and its
batch alone.

This holds on one kind of processor with one number of threads. On others, and where processes died twice over the same
unit, pictures are the same up to rounding.
"""

import hashlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky22.backends.work_units import Failure, Finished, UnitPainter
from kandinsky22.evaluation import logs
from kandinsky22.evaluation.captions import Captions
from kandinsky22.evaluation.estimate import RECENT, estimate
from kandinsky22.evaluation.manifest import (
    MADE_BY,
    UNSHARDED,
    Item,
    Run,
    Shard,
    as_template,
    items,
    with_item,
)
from kandinsky22.evaluation.run_state import failed, is_complete_png, unfinished_units
from kandinsky22.files import locked
from kandinsky22.request import Request
from kandinsky22.request.events import Backend

MAX_FAILURES_IN_A_ROW = 10  # so many suggest that something other than the captions is wrong


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The progress of a shard.

    done, total: pictures. failed: captions that were given up. rate: recent pictures per second; seconds_left: at that
    rate; both None before the first picture.
    """

    done: int
    total: int
    failed: int
    rate: float | None
    seconds_left: float | None


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

    Raises `OSError` for a shard that another process is painting, and `ValueError` for a backend whose batch or weights
    are not those of the run, for a disk without space, after ten captions failed in a row (which are then not
    recorded), and as soon as so many have failed that fewer than `least` pictures are possible.
    """
    painter = as_painter(backend)
    if painter.batch != run.batch:
        raise ValueError(
            f"{run.folder} was created with batch {run.batch}, and now it is {painter.batch}; use {run.batch}"
        )
    with _locked_shard(run, shard) as (folder, check_in_place):
        estimate(run, shard, processes=painter.processes, retry=retry).check()
        units = unfinished_units(run, shard, retry=retry)
        least_for_now = 1 if retry else least  # captions that are tried again may succeed
        _check_enough_left(run, least_for_now)
        progress = _ProgressMeter(run, shard, units)
        yield progress.current()
        pending: list[Failure[str]] = []  # failures since the last success
        with closing(painter.paint(map(run.work_unit, units[:max_units]))) as outcomes:
            for outcome in outcomes:
                check_in_place()
                if isinstance(outcome, Failure):
                    pending.append(outcome)
                    if len(pending) == MAX_FAILURES_IN_A_ROW:
                        raise ValueError(
                            f"{MAX_FAILURES_IN_A_ROW} captions in a row failed, the last because: {outcome.error}"
                        )
                else:
                    _save_picture(run, shard, folder, outcome)
                    _record_failures(run, shard, pending)
                    if pending:
                        _check_enough_left(run, least_for_now)
                    pending.clear()
                progress.count(outcome)
                yield progress.current()
        _record_failures(run, shard, pending)
        _check_enough_left(run, least)


@contextmanager
def _locked_shard(run: Run, shard: Shard) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Lock a shard for this process, and clear what a killed process left.

    Yields a folder for unfinished pictures, and a function that raises `OSError` if the run's folder was removed.
    """
    error = f"another process is painting shard {shard} of {run.folder}; wait for it, or paint another shard"
    folder = run.unfinished(shard)
    with locked(run.log(shard), 0, error) as check_in_place:
        for path in (run.log(shard), run.failures(shard)):
            logs.truncate_partial_line(path)
        shutil.rmtree(folder, ignore_errors=True)
        run.pictures.mkdir(exist_ok=True)
        try:
            yield folder, check_in_place
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _save_picture(run: Run, shard: Shard, folder: Path, outcome: Finished[str]) -> None:
    """Write a picture into `folder`, log it, and move it to its final name."""
    (picture,) = outcome.result.pictures
    for name in MADE_BY:
        if (now := picture.made_by.get(name)) != (before := run.settings.get(name)):
            raise ValueError(
                f"{run.folder} was created with {name} {before}, and this picture was painted with {now}; "
                "give another folder"
            )
    path = picture.save(folder / f"{outcome.key}.png")
    record = {
        "id": outcome.key,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "milliseconds": round(1000 * outcome.seconds),
        "worker": outcome.worker,
    }
    logs.append(run.log(shard), record)
    path.replace(run.pictures / path.name)


def _record_failures(run: Run, shard: Shard, failures: list[Failure[str]]) -> None:
    for failure in failures:
        record = {"id": failure.key, "error": failure.error, "tries": failure.tries}
        logs.append(run.failures(shard), record)


def _check_enough_left(run: Run, least: int) -> None:
    lost, total = len(failed(run)), len(run.items)
    if total - lost < least:
        raise ValueError(
            f"{lost} of {total} captions failed, and the numbers need {least} pictures; see failed-*.jsonl in "
            f"{run.folder}, then try these again with --retry, or give more captions in another folder"
        )


class _ProgressMeter:
    """Counts pictures, and measures how fast they are painted."""

    def __init__(self, run: Run, shard: Shard, to_do: list[tuple[Item, ...]]) -> None:
        units = run.units(shard)
        self._total, to_do_ids = sum(map(len, units)), {item.id for unit in to_do for item in unit}
        painted = [is_complete_png(run.picture(item)) for unit in units for item in unit if item.id not in to_do_ids]
        self._done = sum(painted)
        self._failed = len(painted) - self._done
        self._times = deque([time.monotonic()], maxlen=RECENT + 1)

    def count(self, outcome: Finished[str] | Failure[str]) -> None:
        """Count one more picture or failure."""
        self._times.append(time.monotonic())
        if isinstance(outcome, Failure):
            self._failed += 1
        else:
            self._done += 1

    def current(self) -> RunProgress:
        """The progress so far."""
        if len(self._times) == 1:
            return RunProgress(self._done, self._total, self._failed, None, None)
        rate = (len(self._times) - 1) / max(1e-9, self._times[-1] - self._times[0])
        left = self._total - self._done - self._failed
        return RunProgress(self._done, self._total, self._failed, rate, left / rate)
