"""Painting the pictures of a run folder. A run that was killed resumes, and ends with the same pictures.

A picture is written under a temporary name, logged and then moved to its final name, so every picture with its final
name is complete and in the log. A work unit is finished when each of its items is painted or has failed; any other is
painted again as one batch, which gives its pictures the same bytes, since a picture depends on its request and its
batch alone.

This holds on one kind of processor with one number of threads. On others, and where processes died twice over the same
unit, pictures are the same up to rounding. Imports no torch.
"""

import hashlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from kandinsky22.backends import logs
from kandinsky22.backends.estimate import RECENT, estimate
from kandinsky22.backends.run_folder import MADE_BY, UNSHARDED, I, RunFolder, Shard
from kandinsky22.backends.run_state import is_painted, unfinished_units
from kandinsky22.backends.work_units import Failure, Finished, Outcome, UnitPainter
from kandinsky22.files import locked


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The progress of a shard, in pictures.

    failed: those of items that were given up. rate: recent pictures per second; seconds_left: at that rate; both None
    before the first picture.
    """

    done: int
    total: int
    failed: int
    rate: float | None
    seconds_left: float | None


def paint(
    painter: UnitPainter, run: RunFolder[I], *, shard: Shard = UNSHARDED, retry: bool = False
) -> Iterator[RunProgress]:
    """Paint what is left of a shard; yields the progress before the first picture and after each item.

    An item that fails is recorded, and costs no other its pictures. retry: items that failed before are tried again.
    Closing the iterator stops between two steps of painting. Raises as `started` does.
    """
    with started(painter, run, shard, retry=retry) as painting:
        yield painting.progress()
        with closing(painter.paint(map(run.work_unit, painting.units))) as outcomes:
            for outcome in outcomes:
                painting.check_in_place()
                if isinstance(outcome, Failure):
                    painting.record(outcome)
                else:
                    painting.save(outcome)
                yield painting.progress()


@contextmanager
def started(painter: UnitPainter, run: RunFolder[I], shard: Shard, *, retry: bool) -> "Iterator[Painting[I]]":
    """Lock a shard for this process, and clear what a killed process left; yields what is to be done.

    Raises `OSError` for a shard that another process is painting, and `ValueError` for a painter whose batch is not
    that of the run, and for a disk without space.
    """
    if painter.batch != run.batch:
        raise ValueError(
            f"{run.folder} was created with batch {run.batch}, and now it is {painter.batch}; use {run.batch}"
        )
    error = f"another process is painting shard {shard} of {run.folder}; wait for it, or paint another shard"
    folder = run.unfinished(shard)
    with locked(run.log(shard), 0, error) as check_in_place:
        for path in (run.log(shard), run.failures(shard)):
            logs.truncate_partial_line(path)
        shutil.rmtree(folder, ignore_errors=True)
        run.pictures.mkdir(exist_ok=True)
        estimate(run, shard, processes=painter.processes, retry=retry).check()
        try:
            yield Painting(run, shard, unfinished_units(run, shard, retry=retry), check_in_place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Painting(Generic[I]):
    """A shard that is being painted.

    units: what is left to do. check_in_place: raises `OSError` if the run's folder was removed.
    """

    def __init__(
        self, run: RunFolder[I], shard: Shard, units: Sequence[tuple[I, ...]], check_in_place: Callable[[], None]
    ) -> None:
        self.run, self.shard, self.units, self.check_in_place = run, shard, units, check_in_place
        self._items = {item.id: item for item in run.items}
        all_units, to_do = run.units(shard), {item.id for unit in units for item in unit}
        self._total = sum(self._pictures(item.id) for unit in all_units for item in unit)
        ended = [item for unit in all_units for item in unit if item.id not in to_do]
        self._done = sum(self._pictures(item.id) for item in ended if is_painted(run, item))
        self._failed = sum(self._pictures(item.id) for item in ended) - self._done
        self._times = deque([(time.monotonic(), 0)], maxlen=RECENT + 1)  # and how many pictures had ended then

    def save(self, outcome: Finished[str]) -> None:
        """Write the pictures of an item, log them, and move them to their final names."""
        item, written = self._items[outcome.key], []
        expected = self.run.made_by(item)
        paths = self.run.paths(item)
        for picture, path in zip(outcome.result.pictures, paths, strict=True):
            for name in MADE_BY:
                if (now := picture.made_by.get(name)) != (before := expected[name]):
                    raise ValueError(
                        f"{self.run.folder} was created with {name} {before}, and this picture was painted with {now}; "
                        "give another folder"
                    )
            written.append(picture.save(self.run.unfinished(self.shard) / path.name))
        for path, final in zip(written, paths, strict=True):
            logs.append(self.run.log(self.shard), self._log_record(path, outcome, len(paths)))
            path.replace(final)
        self.count(outcome)

    def record(self, failure: Failure[str]) -> None:
        """Record an item that failed."""
        self.log_failures([failure])
        self.count(failure)

    def log_failures(self, failures: Sequence[Failure[str]]) -> None:
        """Write records of items that failed, without counting them."""
        for failure in failures:
            record = {"id": failure.key, "error": failure.error, "tries": failure.tries}
            logs.append(self.run.failures(self.shard), record)

    def count(self, outcome: Outcome[str]) -> None:
        """Count the pictures of one more item as done or failed."""
        pictures = self._pictures(outcome.key)
        self._times.append((time.monotonic(), self._times[-1][1] + pictures))
        if isinstance(outcome, Failure):
            self._failed += pictures
        else:
            self._done += pictures

    def progress(self) -> RunProgress:
        """The progress so far."""
        if len(self._times) == 1:
            return RunProgress(self._done, self._total, self._failed, None, None)
        (first, before), (last, now) = self._times[0], self._times[-1]
        rate = (now - before) / max(1e-9, last - first)
        left = self._total - self._done - self._failed
        return RunProgress(self._done, self._total, self._failed, rate, left / rate)

    def _pictures(self, name: str) -> int:
        return len(self.run.paths(self._items[name]))

    def _log_record(self, path: Path, outcome: Finished[str], pictures: int) -> dict[str, Any]:
        return {
            "id": path.stem,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "milliseconds": round(1000 * outcome.seconds / pictures),
            "worker": outcome.worker,
        }
