"""Pictures of a manifest, over any backend: a run that was killed goes on and ends with the pictures of one that was not.

A picture is written under a temporary name, logged and then renamed, so what has its name is whole and in the log. A pack is
done when each of its items has its picture or is known to have failed; any other is painted anew, whole, which gives its
pictures the same bytes: company is the only thing that a picture depends on beside its request. So it is on one kind of
processor with one number of threads; elsewhere, or where processes died twice over one pack, pictures are the same to rounding.
"""

import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kandinsky22.backends.local import Here
from kandinsky22.backends.work_units import Failure, Finished, Painter
from kandinsky22.evaluation import logs
from kandinsky22.evaluation.captions import Captions
from kandinsky22.evaluation.manifest import MADE_BY, WHOLE, Item, Run, Shard, filled, items, unfilled
from kandinsky22.request import Request
from kandinsky22.request.events import Backend

SIGNATURE, END = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"  # what a PNG begins and ends with
RECENT = 64  # pictures that speed and size are judged by
RECIPE = 4096  # bytes, for what a picture's file holds beside its pixels
IN_A_ROW = 10  # captions that fail one after the other are not to blame


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a shard is: pictures done, of how many, and captions given up; pictures a second of late, and the seconds left
    at that speed, both None before there is one."""

    done: int
    of: int
    failed: int
    rate: float | None
    left: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a shard still needs: pictures to paint, calls of the decoder for them, bytes of disk, of how many that are free, and
    seconds; None where none was painted yet."""

    pictures: int
    calls: int
    bytes: int
    free: int
    seconds: float | None

    @classmethod
    def none(cls, folder: Path) -> Self:
        """Nothing, in a folder."""
        return cls(0, 0, 0, shutil.disk_usage(folder).free, 0.0)

    def __add__(self, other: Self) -> Self:
        """Of both, on one disk, one after the other."""
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        pictures, calls = self.pictures + other.pictures, self.calls + other.calls
        return type(self)(pictures, calls, self.bytes + other.bytes, min(self.free, other.free), seconds)

    def check(self) -> None:
        """Raises `ValueError` where the disk has too little room."""
        if self.bytes > self.free:
            raise ValueError(
                f"{self.pictures} pictures need about {self.bytes / 1e9:.3g} GB and {self.free / 1e9:.3g} GB of the disk are "
                "free; make room, or choose a folder on another disk"
            )


def painter_of(backend: Backend) -> Painter:
    """A backend that paints packs; others, and models, paint one request at a time in this process."""
    return backend if isinstance(backend, Painter) else Here(backend)


def begin(
    backend: Backend,
    folder: Path,
    captions: Captions,
    request: Request,
    *,
    seed: int = 0,
    check: Callable[[Request], None] = lambda template: None,
    noted: Callable[[], Mapping[str, Any]] = dict,
) -> Run:
    """The run of captions in a folder, each painted as `request` says, with their prompts and seeds in its place; begun if it
    is not there.

    check: is shown the resolved request before anything is written, and may raise. noted: see `Run.begun`. Raises `ValueError`
    as `Run.begun` does, and for a request that the backend refuses.
    """
    painter = painter_of(backend)
    first = items(captions, seed)[0]
    template, made_by = painter.about(filled(unfilled(request), first))
    check(template)
    return Run.begun(folder, captions, template, made_by, batch=painter.batch, seed=seed, noted=noted)


def generate(
    backend: Backend, run: Run, *, shard: Shard = WHOLE, retry: bool = False, packs: int | None = None, least: int = 1
) -> Iterator[Standing]:
    """Paint what a shard lacks, telling how far it is, first before anything is painted.

    Captions that failed before are passed over, unless `retry`. packs: no more than so many. least: pictures that the whole run
    is of no use without. Closing the iterator stops it between two steps of painting. Raises `ValueError` for a shard that
    another process is painting, for a backend that paints otherwise than the run began, for a disk without room, where ten
    captions in a row fail, which are then not recorded, and as soon as so many have failed that fewer than `least` are left.
    """
    painter = painter_of(backend)
    if painter.batch != run.batch:
        raise ValueError(
            f"{run.folder} was begun with batch {run.batch}, and now it is {painter.batch}; use {run.batch}"
        )
    with _held(run, shard) as desk:
        estimate(run, shard, processes=painter.processes, retry=retry).check()
        lacking = _lacking(run, shard, retry=retry)
        meanwhile = 1 if retry else least  # those that are tried again may come out well
        _check_left(run, meanwhile)
        pace = _Pace(run, shard, lacking)
        yield pace.standing()
        doubted: list[Failure[str]] = []
        with closing(painter.paint(map(run.pack, lacking[:packs]))) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    doubted.append(outcome)
                    if len(doubted) == IN_A_ROW:
                        raise ValueError(f"{IN_A_ROW} captions in a row failed, the last because: {outcome.error}")
                else:
                    _keep(run, shard, desk, outcome)
                    _record(run, shard, doubted)
                    if doubted:
                        _check_left(run, meanwhile)
                    doubted.clear()
                pace.count(outcome)
                yield pace.standing()
        _record(run, shard, doubted)
        _check_left(run, least)


def estimate(run: Run, shard: Shard = WHOLE, *, processes: int = 1, retry: bool = False) -> Estimate:
    """What a shard still needs, judged by the latest pictures of the run; before there are any, disk by the size of their
    pixels. `list(generate(..., packs=1))` paints some, for an estimate of time."""
    lacking = sum(len(pack) for pack in _lacking(run, shard, retry=retry))
    there = [path for record in _latest(run) if (path := run.pictures / f"{record['id']}.png").exists()]
    mean = sum(path.stat().st_size for path in there) / len(there) if there else 0
    raw = 3 * (run.template.height or 0) * (run.template.width or 0) + RECIPE
    seconds = seconds_each(run)
    return Estimate(
        lacking,
        lacking * calls(run.template),
        round(lacking * (mean or raw)),
        shutil.disk_usage(run.folder).free,
        None if seconds is None and lacking else (seconds or 0) * lacking / processes,
    )


def seconds_each(run: Run) -> float | None:
    """How long a picture of a run takes one process, judged by the latest; None where none was painted yet."""
    latest = _latest(run)
    return sum(record["milliseconds"] for record in latest) / 1000 / len(latest) if latest else None


def calls(request: Request) -> int:
    """Of the decoder's network for a picture painted from noise, as a resolved request says."""
    steps = request.decoder.steps
    assert steps is not None
    return 2 * steps - 1 if request.decoder.sampler == "heun" else steps


def logged(run: Run) -> dict[str, dict[str, Any]]:
    """What the logs of all shards say of pictures, by id: "sha256" of the file, "milliseconds", "worker"."""
    return logs.by_id(sorted(run.folder.glob("log-*.jsonl")))


def failed(run: Run) -> dict[str, dict[str, Any]]:
    """What is known of captions that failed, by id: "error" and "tries". One that has a picture by now has not."""
    records = logs.by_id(sorted(run.folder.glob("failed-*.jsonl")))
    return {name: record for name, record in records.items() if not is_whole(run.pictures / f"{name}.png")}


def _latest(run: Run) -> list[dict[str, Any]]:
    return [*logged(run).values()][-RECENT:]


def is_whole(path: Path) -> bool:
    """Whether a PNG is there, from its first bytes to its last."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(SIGNATURE)) == SIGNATURE
            file.seek(-len(END), os.SEEK_END)
            return begins and file.read() == END
    except OSError:
        return False


@contextmanager
def _held(run: Run, shard: Shard) -> Iterator[Path]:
    """The shard for this process alone, cleared of what a killed one left, and a folder for pictures that are not whole yet."""
    taken = f"another process is painting part {shard} of {run.folder}; let it, or paint another part"
    desk = run.desk(shard)
    with logs.locked(run.log(shard), taken):
        for path in (run.log(shard), run.failures(shard)):
            logs.mend(path)
        shutil.rmtree(desk, ignore_errors=True)
        run.pictures.mkdir(exist_ok=True)
        try:
            yield desk
        finally:
            shutil.rmtree(desk, ignore_errors=True)


def _lacking(run: Run, shard: Shard, *, retry: bool) -> list[tuple[Item, ...]]:
    """The packs that are not done."""
    given_up = {} if retry else failed(run)
    packs = run.packs(shard)
    return [pack for pack in packs if not all(item.id in given_up or is_whole(run.picture(item)) for item in pack)]


def _keep(run: Run, shard: Shard, desk: Path, outcome: Finished[str]) -> None:
    """Write a picture, log it, and give it its name."""
    (picture,) = outcome.result.pictures
    for name in MADE_BY:
        if (now := picture.made_by.get(name)) != (then := run.about.get(name)):
            raise ValueError(f"{run.folder} was begun with {name} {then}, and this picture was painted with {now}")
    written = picture.save(desk / f"{outcome.key}.png")
    record = {
        "id": outcome.key,
        "sha256": hashlib.sha256(written.read_bytes()).hexdigest(),
        "milliseconds": round(1000 * outcome.seconds),
        "worker": outcome.worker,
    }
    logs.append(run.log(shard), record)
    written.replace(run.pictures / written.name)


def _record(run: Run, shard: Shard, failures: list[Failure[str]]) -> None:
    for failure in failures:
        record = {"id": failure.key, "error": failure.error, "tries": failure.tries}
        logs.append(run.failures(shard), record)


def _check_left(run: Run, least: int) -> None:
    lost, of = len(failed(run)), len(run.items)
    if of - lost < least:
        raise ValueError(
            f"{lost} of {of} captions failed, and the numbers need {least} pictures; see failed-*.jsonl in {run.folder}, then "
            "try these again with --retry, or give more captions in another folder"
        )


class _Pace:
    """Counts pictures and the time they take."""

    def __init__(self, run: Run, shard: Shard, lacking: list[tuple[Item, ...]]) -> None:
        packs = run.packs(shard)
        self.of, to_do = sum(map(len, packs)), {item.id for pack in lacking for item in pack}
        there = [is_whole(run.picture(item)) for pack in packs for item in pack if item.id not in to_do]
        self.done = sum(there)
        self.failed = len(there) - self.done
        self.times = deque([time.monotonic()], maxlen=RECENT + 1)

    def count(self, outcome: Finished[str] | Failure[str]) -> None:
        """One more is done, or given up."""
        self.times.append(time.monotonic())
        if isinstance(outcome, Failure):
            self.failed += 1
        else:
            self.done += 1

    def standing(self) -> Standing:
        """How far it is."""
        if len(self.times) == 1:
            return Standing(self.done, self.of, self.failed, None, None)
        rate = (len(self.times) - 1) / max(1e-9, self.times[-1] - self.times[0])
        return Standing(self.done, self.of, self.failed, rate, (self.of - self.done - self.failed) / rate)
