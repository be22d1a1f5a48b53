"""Values computed once from the user's pictures, found by the content of each picture, whichever run computed them.

What a call computes is a folder of `shards` of its own beside a list of the contents; values are looked up in all
complete folders, so pictures that are added, renamed or moved to another run's data cost nothing again.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kandinsky22.files import atomic_write
from kandinsky22.training import shards
from kandinsky22.training.processes import ALONE, Processes

DIGESTS = "digests.txt"  # beside the shards: the content of each row


class CachedRows:
    """The values of some pictures, in their order, from several folders of shards."""

    def __init__(self, parts: Sequence[shards.Shards], places: Tensor) -> None:
        self._parts = parts
        self._places = places  # int64 [N, 2]: the part and the row in it
        self.shape, self.dtype = parts[0].shape, parts[0].dtype

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """A copy of the values [B, ...] of rows, int64 [B], in any order and with repetitions."""
        places = self._places[rows]
        values = torch.empty(len(places), *self.shape, dtype=self.dtype)
        for part in places[:, 0].unique().tolist():
            chosen = places[:, 0] == part
            values[chosen] = self._parts[part][places[chosen, 1]]
        return values


def load_or_compute(
    folder: Path,
    fingerprint: str,
    digests: Sequence[str],
    compute: Callable[[Sequence[int]], Tensor],
    *,
    dtype: torch.dtype = torch.float16,
    processes: Processes = ALONE,
    progress: shards.Progress | None = None,
) -> CachedRows:
    """The values of the pictures with these contents, of which only the missing ones are computed. A collective call.

    `folder` is for values of one kind and shape, `fingerprint` identifies what they are computed with; `compute` maps
    indices of pictures to their values. Raises `ValueError` and `FloatingPointError` as `shards.fill` does.
    """
    known = processes.broadcast_from_rank0(lambda: _complete(folder))
    found = {digest for name in known for digest in _digests(folder / name)}
    first = {digest: row for row, digest in reversed([*enumerate(digests)])}
    missing = [digest for digest in first if digest not in found]
    missing.sort(key=first.__getitem__)
    if missing:
        name = hashlib.sha256("\n".join(missing).encode()).hexdigest()[:16]

        def write_digests() -> None:
            with atomic_write(folder / name / DIGESTS) as partial:
                partial.write_text("\n".join(missing) + "\n", encoding="utf-8")

        processes.broadcast_from_rank0(write_digests)
        shards.load_or_compute(
            folder / name,
            fingerprint,
            len(missing),
            lambda rows: compute([first[missing[row]] for row in rows]),
            dtype=dtype,
            processes=processes,
            progress=progress,
        )
        known = [*known, name]
    parts: list[shards.Shards] = []
    places: dict[str, tuple[int, int]] = {}
    for name in known:
        contents = _digests(folder / name)
        if not first.keys().isdisjoint(contents):
            places |= {digest: (len(parts), row) for row, digest in enumerate(contents) if digest in first}
            parts.append(shards.Shards(folder / name, fingerprint, len(contents)))
    return CachedRows(parts, torch.tensor([places[digest] for digest in digests]))


def _complete(folder: Path) -> list[str]:
    """The names of the complete folders of shards."""
    indexes = folder.glob(f"*/{shards.INDEX}") if folder.is_dir() else ()
    return sorted(path.parent.name for path in indexes if (path.parent / DIGESTS).is_file())


def _digests(folder: Path) -> list[str]:
    return (folder / DIGESTS).read_text(encoding="utf-8").split()
