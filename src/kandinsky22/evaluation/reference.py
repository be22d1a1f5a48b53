"""Features of a set of pictures, made once and kept: what FID, KID and CMMD compare.

Two sets are only compared where the same network saw them in the same way. Shares of a set that workers measured add up to
the whole set, in the order of the pictures' names, whoever measured what.
"""

import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any, NamedTuple, Self
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kandinsky22.evaluation.features import Features
from kandinsky22.files import atomic_write
from kandinsky22.moments import Gaussian, Moments

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # the decoders that are let near them
NAMED = 3  # of broken pictures
CHUNK = 4096  # rows whose moments are taken at once
ROUNDING = 1e-5  # of a published covariance, relative to its largest number
ABOUT = "kandinsky22"  # in a file's metadata
# What a decoder raises for a broken file; struct's and zlib's errors come from chunks beside the pixels
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

Progress = Callable[[int, int], None]
"""(how many pictures are done, of how many)"""


class By(NamedTuple):
    """What features were made by: the properties of that name of `features.Features`."""

    name: str
    fingerprint: str
    resize: str


@dataclass(frozen=True)
class Statistics:
    """The features of a set of pictures.

    names: of the pictures, ascending, each once. features: float32 [n, dim], in their order. sizes: (height, width) that
    pictures have, ascending, each once. A public file of mean and covariance alone has no names, features, sizes and `by`.
    """

    moments: Moments | Gaussian
    by: By | None = None
    names: tuple[str, ...] = ()
    features: Tensor | None = None
    sizes: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, by: By, names: Sequence[str], features: Tensor, sizes: Sequence[tuple[int, int]]) -> Self:
        """Of pictures, at least one, in any order. features: float32 [n, dim]. Raises `ValueError` where a picture is named
        twice, and `FloatingPointError` for features that are not finite."""
        if not features.isfinite().all():
            raise FloatingPointError(f"features by {by.name} are not finite; compute them in float32")
        moments = reduce(add, map(Moments.of, features.split(CHUNK)))
        return cls._sorted(moments, by, names, features, sizes)

    def __add__(self, other: Self) -> Self:
        """Of both sets. Raises `ValueError` where a picture is in both, or they were not made by the same."""
        if self.by != other.by or not isinstance(self.moments, Moments) or not isinstance(other.moments, Moments):
            raise ValueError("these features were not made by the same network in the same way; measure one set again")
        features = torch.cat([self.rows, other.rows])
        moments, names, sizes = self.moments + other.moments, self.names + other.names, self.sizes + other.sizes
        assert self.by is not None
        return type(self)._sorted(moments, self.by, names, features, sizes)

    @classmethod
    def _sorted(
        cls, moments: Moments, by: By, names: Sequence[str], features: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Self:
        order = sorted(range(len(names)), key=names.__getitem__)
        ascending = tuple(names[i] for i in order)
        twice = next((name for name, after in pairwise(ascending) if name == after), None)
        if twice is not None:
            raise ValueError(f"the picture {twice} was measured twice; leave out one of its shares")
        return cls(moments, by, ascending, features[order], tuple(sorted(set(sizes))))

    @property
    def count(self) -> float:
        """Of how many pictures; infinity where a public file does not say."""
        return self.moments.count

    @property
    def rows(self) -> Tensor:
        """float32 [n, dim]. Raises `ValueError` where only a mean and a covariance are known."""
        if self.features is None:
            raise ValueError(
                "this reference holds a mean and a covariance, which FID needs; KID and CMMD need its pictures"
            )
        return self.features

    def check(self, other: "Statistics | By", *, any_size: bool = False) -> None:
        """Raises `ValueError` where this and another set, or what a network makes, must not be compared: for another network
        or another resizing; and, unless `any_size`, for pictures that all have one size here and all another there.

        Of a public file without names only the user knows what made it.
        """
        theirs = other if isinstance(other, By) else other.by
        if self.by is not None and theirs is not None:
            if self.by[:2] != theirs[:2]:
                raise ValueError(
                    f"the reference was measured with {_said(self.by)}, and the pictures with {_said(theirs)}; "
                    "use the same weights for both"
                )
            if self.by.resize != theirs.resize:
                raise ValueError(
                    f"the reference was resized otherwise ({self.by.resize}) than the pictures ({theirs.resize}); "
                    "measure one of them again"
                )
        if not any_size and isinstance(other, Statistics):
            check_sizes(self.sizes, other.sizes)


def check_sizes(real: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> None:
    """Raises `ValueError` where all real pictures have one size, and the others all another."""
    if len(real) == len(others) == 1 and [*real] != [*others]:
        here, there = ("{}x{}".format(*size) for size in (real[0], others[0]))
        raise ValueError(
            f"the reference's pictures are all {here} and the others all {there}, which alone moves the numbers; bring "
            "them to one size, or say that any size will do"
        )


def by(features: Features) -> By:
    """What statistics say of the network that made them."""
    return By(features.name, features.fingerprint, features.resize)


def pictures_in(*folders: Path) -> dict[str, Path]:
    """The pictures in folders and the folders within them, by their names there, sorted; hidden ones are passed over.

    Raises `ValueError` where there are none in one of them, and for a name that is in two.
    """
    seen: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give a folder of pictures")
        found = {path.relative_to(folder): path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS}
        named = {
            name.as_posix(): path for name, path in found.items() if not any(part[0] == "." for part in name.parts)
        }
        if not named:
            raise ValueError(f"{folder} holds no pictures ({', '.join(ENDINGS)}); give the folder they are in")
        if twice := next(iter(sorted(seen.keys() & named.keys())), None):
            raise ValueError(f"{twice} is in two of the folders, {folder} among them; give the folder above both")
        seen |= named
    return dict(sorted(seen.items()))


def measure(
    pictures: Mapping[str, Path], features: Features, *, batch: int = 32, progress: Progress | None = None
) -> Statistics:
    """The statistics of pictures, at least one, by their names; `batch` go through the network at once.

    Each is decoded twice, so that a broken one is known before hours are spent on the others. Raises `ValueError` naming
    the first broken ones and how many there are.
    """
    sizes = sizes_of(pictures)
    paths, made = list(pictures.values()), []
    for start in range(0, len(paths), batch):
        made.append(features([_read(path) for path in paths[start : start + batch]]))
        if progress is not None:
            progress(min(start + batch, len(paths)), len(paths))
    return Statistics.of(by(features), list(pictures), torch.cat(made), sizes)


def sizes_of(pictures: Mapping[str, Path], *, whole: bool = True) -> list[tuple[int, int]]:
    """The (height, width) that pictures have, ascending, each once. whole: decode them, not their first bytes alone.

    Raises `ValueError` naming the first broken ones and how many there are.
    """
    sizes, broken = set(), []
    for name, path in pictures.items():
        try:
            width, height = _read(path).size if whole else _size(path)
            sizes.add((height, width))
        except BROKEN:
            broken.append(name)
    if broken:
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise ValueError(
            f"{len(broken)} of {len(pictures)} pictures cannot be read ({', '.join(broken[:NAMED])}{more}); repair or remove "
            "them, since a number over the others would be that of another set"
        )
    return sorted(sizes)


def save(path: Path, statistics: Statistics) -> None:
    """Write statistics that were measured as .safetensors: mean, scatter (float64), features (float32), and in its metadata
    the rest. Raises `OSError`."""
    assert isinstance(statistics.moments, Moments) and statistics.by is not None
    moments = statistics.moments
    about = {
        "weight": moments.weight,
        "by": statistics.by._asdict(),
        "names": statistics.names,
        "sizes": statistics.sizes,
    }
    tensors = {"mean": moments.mean, "scatter": moments.scatter, "features": statistics.rows}
    with atomic_write(path) as partial:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial, {ABOUT: json.dumps(about)})


def load(path: Path) -> Statistics:
    """The statistics in a file that `save` wrote, or in an .npz with `mu` and `sigma`, as pytorch-fid, clean-fid and
    text2image-benchmark publish them: those do for FID alone.

    Raises `ValueError` for a file that is missing, damaged or something else, and for a sigma that is no covariance.
    """
    try:
        found = _public(path) if path.suffix == ".npz" else _own(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is not there; make it with `kandinsky22 evaluate stats FOLDER`") from None
    except (OSError, SafetensorError, BadZipFile, ValueError, KeyError, TypeError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} holds no statistics that can be read; make them again with `kandinsky22 evaluate stats FOLDER`, or name "
            "an .npz with mu and sigma"
        ) from error
    if isinstance(found.moments, Gaussian) and (wrong := _wrong(found.moments)):
        raise ValueError(
            f"{path}: {wrong}, so it is no mean and covariance of features; get it again from who published it"
        )
    return found


def merged(paths: Sequence[Path]) -> Statistics:
    """Of the parts of a set that are in files which `save` wrote. Raises `ValueError` as `load` and `Statistics.__add__` do."""
    return reduce(add, map(load, paths))


def _own(path: Path) -> Statistics:
    with safe_open(path, framework="pt") as file:
        about: dict[str, Any] = json.loads((file.metadata() or {})[ABOUT])
        mean, scatter, features = (file.get_tensor(name) for name in ("mean", "scatter", "features"))
    if features.shape != (len(about["names"]), len(mean)) or scatter.shape != (len(mean), len(mean)):
        raise ValueError("its parts are not of one set")
    sizes = tuple((height, width) for height, width in about["sizes"])
    moments = Moments(float(about["weight"]), mean, scatter)
    return Statistics(moments, By(**about["by"]), tuple(about["names"]), features, sizes)


def _public(path: Path) -> Statistics:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        mean, covariance = (torch.from_numpy(file[name].astype(np.float64)) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError("mu and sigma are no mean and covariance")
    return Statistics(Gaussian(mean, covariance))


def _wrong(said: Gaussian) -> str | None:
    """Why a mean and a covariance can be none: what float32 rounds is forgiven."""
    mean, covariance = said.mean, said.covariance
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        return "its mu or sigma is not finite"
    if (covariance - covariance.T).abs().max() > ROUNDING * covariance.abs().max():
        return "its sigma is not symmetric"
    values = torch.linalg.eigvalsh(covariance)
    if values[0] < -ROUNDING * values.abs().max() or values[-1] <= 0:
        return "its sigma has variances below 0"
    return None


def _read(path: Path) -> Image.Image:
    """A picture's 8 bits of RGB."""
    with Image.open(path, formats=FORMATS) as image:
        image.info.pop("transparency", None)  # it is dropped anyway, and Pillow would warn
        return image.convert("RGB")


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path, formats=FORMATS) as image:
        return image.size


def _said(made_by: By) -> str:
    return f"{made_by.name} ({made_by.fingerprint[:12]})"
