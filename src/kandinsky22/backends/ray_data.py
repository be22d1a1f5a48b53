"""Bulk work on a Ray cluster: work units are rows of a Ray Data set, painted by actors, as many as the work needs.

Needs the extra `ray`. Imports no torch in the process that uses it.
"""

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
import ray.data

from kandinsky22.backends.pool import LoadKandinsky
from kandinsky22.backends.ray import RayBackend, RayWorker, Reserve, connect
from kandinsky22.backends.work_units import TRIES, Failure, K, Outcome, UnitPainter, WorkUnit
from kandinsky22.request import Request
from kandinsky22.request.events import Backend
from kandinsky22.threads import let_threads_sleep


@dataclass(frozen=True, slots=True)
class RayPainter(UnitPainter):
    """Paints work units by Ray Data. backend: resolves and describes requests. processes: at most so many actors.

    load: loads the backend in an actor. reserve: what an actor asks of Ray; see `backends.ray.Reserve`. The calling
    process is connected to a cluster already. A unit is begun again, on another actor, where its actor died: at most
    three times in all.
    """

    load: Callable[[], Backend] = field(kw_only=True)
    reserve: Reserve = field(kw_only=True, default=Reserve())

    def paint(self, units: Iterable[WorkUnit[K]]) -> Generator[Outcome[K], None, None]:
        """As `UnitPainter.paint`; all units are read before the first is painted."""
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = [{"number": number, "unit": pickle.dumps(unit)} for number, unit in enumerate(units)]
        if not rows:
            return
        painted = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _PaintUnits,
            fn_constructor_args=(self.load, _start_tries.remote()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=self.processes, max_tasks_in_flight_per_actor=2),
            num_cpus=self.reserve.num_cpus,
            num_gpus=self.reserve.num_gpus or None,
        )
        for row in painted.iter_rows():
            yield from pickle.loads(row["outcomes"])


@contextmanager
def start(
    model: str,
    *,
    processes: int | None = None,
    batch: int = 1,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    request: Request | Sequence[Request] | None = None,
    address: str | None = None,
) -> Iterator[RayPainter]:
    """A painter whose actors each load `model`.

    processes: at most so many actors; None is as many as the cluster has room for. The other parameters are those of
    `backends.ray.RayBackend.of`, and errors too.
    """
    reserve = Reserve.of(device, threads or 1)
    # One more actor answers what the painter's backend is asked, on a machine like those that paint.
    asked = Reserve(0, 0.01 if reserve.num_gpus else 0)
    load = LoadKandinsky(model, device, dtype, threads or 1, request)
    connect(address)
    with RayBackend(load, processes=1, start=partial(RayWorker, reserve=asked)) as backend:
        yield RayPainter(backend, batch, processes or reserve.room, load=load, reserve=reserve)


class _Tries:
    """How often each unit was begun. Ray begins a unit of a dead actor again without end."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Count a try; returns how many there were before."""
        self._counts[number] += 1
        return self._counts[number] - 1


_start_tries: Any = ray.remote  # its types know no options of an actor
_start_tries = _start_tries(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tries)


class _PaintUnits:
    """What an actor of the pool does with a row: {"number": its number, "unit": a pickled `WorkUnit`}."""

    def __init__(self, load: Callable[[], Backend], tries: Any) -> None:
        let_threads_sleep()
        self.painter, self.tries = UnitPainter(load()), tries

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Rows of {"outcomes": the pickled outcomes of a unit}."""
        units = zip(rows["number"], rows["unit"], strict=True)
        return {"outcomes": [pickle.dumps(self._paint(int(number), pickle.loads(unit))) for number, unit in units]}

    def _paint(self, number: int, unit: WorkUnit[K]) -> list[Outcome[K]]:
        if ray.get(self.tries.begin.remote(number)) >= TRIES:
            error = f"the process that painted it died, {TRIES} times"
            return [Failure(key, error, TRIES) for key in unit.requests]
        return list(self.painter.paint([unit]))
