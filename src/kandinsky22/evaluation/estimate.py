"""What a run still needs: pictures, network calls, disk space and time. Imports no torch."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kandinsky22.evaluation.manifest import UNSHARDED, Run, Shard
from kandinsky22.evaluation.run_state import logged, unfinished_units

RECENT = 64  # of the latest pictures, the mean size and time are taken
METADATA_BYTES = 4096  # of a picture's file, beside its pixels


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is left of a shard.

    pictures: to be painted. calls: of the decoder's U-Net for them. bytes: on the disk, of which `free` are available.
    seconds: None while no picture has been painted yet.
    """

    pictures: int
    calls: int
    bytes: int
    free: int
    seconds: float | None

    @classmethod
    def none(cls, folder: Path) -> Self:
        """The estimate for nothing, in a folder."""
        return cls(0, 0, 0, shutil.disk_usage(folder).free, 0.0)

    def __add__(self, other: Self) -> Self:
        """Both, one after the other, on the same disk."""
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        pictures, calls = self.pictures + other.pictures, self.calls + other.calls
        return type(self)(pictures, calls, self.bytes + other.bytes, min(self.free, other.free), seconds)

    def check(self) -> None:
        """Raises `ValueError` if the disk has too little free space."""
        if self.bytes > self.free:
            raise ValueError(
                f"{self.pictures} pictures need about {self.bytes / 1e9:.3g} GB and {self.free / 1e9:.3g} GB of the "
                "disk are free; make room, or choose a folder on another disk"
            )


def estimate(run: Run, shard: Shard = UNSHARDED, *, processes: int = 1, retry: bool = False) -> Estimate:
    """What is left of a shard, extrapolated from the latest pictures of the run; retry: as `generate` takes it.

    Before there are pictures, their size is taken to be that of their pixels, and the time is unknown;
    `list(generate(..., max_units=1))` paints some.
    """
    lacking = sum(len(unit) for unit in unfinished_units(run, shard, retry=retry))
    paths = [path for record in _latest(run) if (path := run.pictures / f"{record['id']}.png").exists()]
    mean_bytes = sum(path.stat().st_size for path in paths) / len(paths) if paths else 0
    raw_bytes = 3 * (run.template.height or 0) * (run.template.width or 0) + METADATA_BYTES
    seconds = seconds_per_picture(run)
    return Estimate(
        lacking,
        lacking * run.template.decoder.network_calls,
        round(lacking * (mean_bytes or raw_bytes)),
        shutil.disk_usage(run.folder).free,
        None if seconds is None and lacking else (seconds or 0) * lacking / processes,
    )


def seconds_per_picture(run: Run) -> float | None:
    """The mean time that one process took for each of the latest pictures of a run; None if there are none yet."""
    latest = _latest(run)
    return sum(record["milliseconds"] for record in latest) / 1000 / len(latest) if latest else None


def _latest(run: Run) -> list[dict[str, Any]]:
    return [*logged(run).values()][-RECENT:]
