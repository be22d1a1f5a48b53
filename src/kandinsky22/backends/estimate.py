"""What a run still needs: pictures, network calls, disk space and time. Imports no torch."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kandinsky22.backends.run_folder import UNSHARDED, RunFolder, Shard
from kandinsky22.backends.run_state import logged, unfinished_units
from kandinsky22.request import Request

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


def estimate(run: RunFolder[Any], shard: Shard = UNSHARDED, *, processes: int = 1, retry: bool = False) -> Estimate:
    """What is left of a shard, extrapolated from the latest pictures of the run; retry: see `unfinished_units`.

    Before there are pictures, their size is taken to be that of their pixels, and the time is unknown.
    """
    left = [run.request(item) for unit in unfinished_units(run, shard, retry=retry) for item in unit]
    pictures = sum(request.num_images for request in left)
    paths = [path for record in _latest(run) if (path := run.pictures / f"{record['id']}.png").exists()]
    mean_bytes = sum(path.stat().st_size for path in paths) / len(paths) if paths else 0
    seconds = seconds_per_picture(run)
    return Estimate(
        pictures,
        sum(request.num_images * request.decoder.network_calls for request in left),
        round(sum(request.num_images * (mean_bytes or _raw_bytes(request)) for request in left)),
        shutil.disk_usage(run.folder).free,
        None if seconds is None and pictures else (seconds or 0) * pictures / processes,
    )


def seconds_per_picture(run: RunFolder[Any]) -> float | None:
    """The mean time that one process took for each of the latest pictures of a run; None if there are none yet."""
    latest = _latest(run)
    return sum(record["milliseconds"] for record in latest) / 1000 / len(latest) if latest else None


def _latest(run: RunFolder[Any]) -> list[dict[str, Any]]:
    return [*logged(run).values()][-RECENT:]


def _raw_bytes(request: Request) -> int:
    return 3 * (request.height or 0) * (request.width or 0) + METADATA_BYTES
