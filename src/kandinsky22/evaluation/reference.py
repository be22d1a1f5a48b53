"""Statistics of a set of pictures: the features that FID, KID and CMMD compare, computed once and stored in a file.

Two sets are only compared if the same network computed their features with the same preprocessing. A set can be
measured in parts: their statistics add up to those of the complete set, ordered by the pictures' names, in whatever
order they are added.
"""

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from lzma import LZMAError
from operator import add
from pathlib import Path
from typing import Any, NamedTuple, Self
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kandinsky22.arrays import read_header
from kandinsky22.checkpoints.safetensors_file import open_tensors
from kandinsky22.evaluation.features import Features
from kandinsky22.files import atomic_write, open_regular, parse_json
from kandinsky22.moments import Gaussian, Moments
from kandinsky22.request.picture_file import SUFFIXES, open_picture

NAMED = 3  # broken pictures that an error names
CHUNK = 4096  # rows whose moments are computed at once
ROUNDING = 1e-5  # tolerance for a published covariance, relative to its largest entry
MAX_ARRAY_BYTES = 1 << 29  # of an .npz file's array: a covariance of 8192 features
DAMAGED = (SafetensorError, BadZipFile, RuntimeError, LZMAError, zlib.error)  # raised for damaged files of tensors
METADATA_KEY = "kandinsky22"  # of a .safetensors file

Progress = Callable[[int, int], None]
"""(how many pictures are done, of how many)"""


class Source(NamedTuple):
    """What computed some features: the `name`, `fingerprint` and `resize` of a `features.Features`."""

    name: str
    fingerprint: str
    resize: str


@dataclass(frozen=True)
class Statistics:
    """The features of a set of pictures.

    names: of the pictures, sorted and unique. features: float32 [n, dim], in the order of names. sizes: the distinct
    (height, width) of the pictures, sorted. source: the network that computed the features. A published file of a mean
    and a covariance has moments alone.
    """

    moments: Moments | Gaussian
    source: Source | None = None
    names: tuple[str, ...] = ()
    features: Tensor | None = None
    sizes: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, source: Source, names: Sequence[str], features: Tensor, sizes: Sequence[tuple[int, int]]) -> Self:
        """The statistics of pictures, at least one, in any order. features: float32 [n, dim].

        Raises `ValueError` for a repeated name, and `FloatingPointError` for features that are not finite.
        """
        if not features.isfinite().all():
            raise FloatingPointError(f"features by {source.name} are not finite; compute them in float32")
        moments = reduce(add, map(Moments.of, features.split(CHUNK)))
        return cls._sorted(moments, source, names, features, sizes)

    def __add__(self, other: Self) -> Self:
        """The statistics of the union. Raises `ValueError` if a picture is in both, or if their sources differ."""
        if (
            self.source != other.source
            or not isinstance(self.moments, Moments)
            or not isinstance(other.moments, Moments)
        ):
            raise ValueError("these features were not made by the same network in the same way; measure one set again")
        features = torch.cat([self.rows, other.rows])
        moments, names, sizes = self.moments + other.moments, self.names + other.names, self.sizes + other.sizes
        assert self.source is not None
        return type(self)._sorted(moments, self.source, names, features, sizes)

    @classmethod
    def _sorted(
        cls, moments: Moments, source: Source, names: Sequence[str], features: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Self:
        order = sorted(range(len(names)), key=names.__getitem__)
        sorted_names = tuple(names[i] for i in order)
        repeated = next((name for name, after in pairwise(sorted_names) if name == after), None)
        if repeated is not None:
            raise ValueError(f"the picture {repeated} was measured twice; leave out one of the parts that have it")
        return cls(moments, source, sorted_names, features[order], tuple(sorted(set(sizes))))

    @property
    def count(self) -> float:
        """The number of pictures; infinity for a published file, which does not state it."""
        return self.moments.count

    @property
    def rows(self) -> Tensor:
        """The features, float32 [n, dim]. Raises `ValueError` if only a mean and a covariance are known."""
        if self.features is None:
            raise ValueError(
                "this reference holds a mean and a covariance, which suffice for FID; KID and CMMD need its pictures' "
                "features: give a folder of pictures, or statistics from `kandinsky22 evaluate stats`"
            )
        return self.features

    def check(self, other: "Statistics | Source", *, any_size: bool = False) -> None:
        """Raises `ValueError` if this set must not be compared with another set, or with features of a source.

        Networks, weights and resizing must be the same; and, unless `any_size`, the sizes, if the pictures of each set
        have only one. A published file does not state its source, and is not checked for it.
        """
        theirs = other if isinstance(other, Source) else other.source
        if self.source is not None and theirs is not None:
            if self.source[:2] != theirs[:2]:
                raise ValueError(
                    f"the reference was measured with {_label(self.source)}, and the pictures with {_label(theirs)}; "
                    "use the same weights for both"
                )
            if self.source.resize != theirs.resize:
                raise ValueError(
                    f"the reference was resized by another method ({self.source.resize}) than the pictures "
                    f"({theirs.resize}); measure one of them again"
                )
        if not any_size and isinstance(other, Statistics):
            check_sizes(self.sizes, other.sizes)


def check_sizes(real: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> None:
    """Raises `ValueError` if all real pictures have one (height, width) and all others have a different one."""
    if len(real) == len(others) == 1 and [*real] != [*others]:
        real_size, other_size = ("{}x{}".format(*size) for size in (real[0], others[0]))
        raise ValueError(
            f"the reference's pictures are all {real_size} and the others all {other_size}, which alone changes "
            "the numbers; use one size for both, or allow any size"
        )


def source_of(features: Features) -> Source:
    """The source that statistics of a network's features have."""
    return Source(features.name, features.fingerprint, features.resize)


def find_pictures(*folders: Path) -> dict[str, Path]:
    """The pictures in folders and their subfolders, by path relative to the folder, sorted; hidden files are ignored.

    Raises `ValueError` for a folder without pictures, and for a relative path that exists in two folders.
    """
    seen: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give a folder of pictures")
        paths = {path.relative_to(folder): path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
        named = {
            name.as_posix(): path for name, path in paths.items() if not any(part[0] == "." for part in name.parts)
        }
        if not named:
            raise ValueError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}); give the folder they are in")
        if repeated := next(iter(sorted(seen.keys() & named.keys())), None):
            raise ValueError(f"{repeated} is in two of the folders, one of them {folder}; give the folder above both")
        seen |= named
    return dict(sorted(seen.items()))


def measure(
    pictures: Mapping[str, Path], features: Features, *, batch: int = 32, progress: Progress | None = None
) -> Statistics:
    """The statistics of pictures, at least one, by name; `batch` of them are given to the network at once.

    Every picture is first decoded once as a check, so that a broken one is found before hours of work. Raises
    `ValueError` that counts the broken pictures and names the first.
    """
    sizes = sizes_of(pictures)
    paths, rows = list(pictures.values()), []
    for start in range(0, len(paths), batch):
        rows.append(features([_read(path) for path in paths[start : start + batch]]))
        if progress is not None:
            progress(min(start + batch, len(paths)), len(paths))
    return Statistics.of(source_of(features), list(pictures), torch.cat(rows), sizes)


def sizes_of(pictures: Mapping[str, Path], *, decode: bool = True) -> list[tuple[int, int]]:
    """The distinct (height, width) of pictures, sorted. decode: decode each picture; False reads its header alone.

    Raises `ValueError` that counts the broken pictures and names the first.
    """
    sizes, broken = set(), []
    for name, path in pictures.items():
        try:
            width, height = _read(path).size if decode else _size(path)
            sizes.add((height, width))
        except ValueError:
            broken.append(name)
    if broken:
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise ValueError(
            f"{len(broken)} of {len(pictures)} pictures cannot be read ({', '.join(broken[:NAMED])}{more}); repair or "
            "remove them: numbers over the others would be those of another set"
        )
    return sorted(sizes)


def save(path: Path, statistics: Statistics) -> None:
    """Write measured statistics to a .safetensors file.

    Tensors are mean and scatter (float64) and features (float32); the rest is metadata. Raises `OSError`.
    """
    assert isinstance(statistics.moments, Moments) and statistics.source is not None
    moments = statistics.moments
    metadata = {
        "weight": moments.weight,
        "by": statistics.source._asdict(),
        "names": statistics.names,
        "sizes": statistics.sizes,
    }
    tensors = {"mean": moments.mean, "scatter": moments.scatter, "features": statistics.rows}
    with atomic_write(path) as partial:
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, partial, {METADATA_KEY: json.dumps(metadata)}
        )


def load(path: Path) -> Statistics:
    """The statistics of a file that `save` wrote, or of an .npz file with `mu` and `sigma`.

    pytorch-fid, clean-fid and text2image-benchmark publish such .npz files; they suffice for FID alone. Raises
    `ValueError` for a file that is missing, damaged or of another kind, and for a sigma that is not a covariance.
    """
    try:
        statistics = _load_npz(path) if path.suffix == ".npz" else _load_safetensors(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; make it with `kandinsky22 evaluate stats FOLDER`") from None
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, *DAMAGED) as error:
        raise ValueError(
            f"{path} holds no statistics that can be read; make them again with `kandinsky22 evaluate stats FOLDER`, "
            "or name an .npz with mu and sigma"
        ) from error
    if isinstance(statistics.moments, Gaussian) and (problem := _problem(statistics.moments)):
        raise ValueError(f"{path}: {problem}, so it is not the mean and covariance of features; download it again")
    return statistics


def load_parts(paths: Sequence[Path]) -> Statistics:
    """The statistics of a set whose parts are in several files.

    Raises `ValueError` as `load` and `Statistics.__add__` do.
    """
    return reduce(add, map(load, paths))


def _load_safetensors(path: Path) -> Statistics:
    with open_tensors(path) as file:
        metadata: dict[str, Any] = parse_json((file.metadata() or {})[METADATA_KEY])
        mean, scatter, features = (file.get_tensor(name) for name in ("mean", "scatter", "features"))
    if features.shape != (len(metadata["names"]), len(mean)) or scatter.shape != (len(mean), len(mean)):
        raise ValueError("its tensors and metadata are not of one set")
    dtypes = [mean.dtype, scatter.dtype, features.dtype]
    if dtypes != [torch.float64, torch.float64, torch.float32] or not all(
        value.isfinite().all() for value in (mean, scatter, features)
    ):
        raise ValueError("its tensors are not finite floating-point numbers")
    sizes = tuple((height, width) for height, width in metadata["sizes"])
    source, names = Source(**metadata["by"]), tuple(metadata["names"])
    are_sizes = all(type(side) is int for size in sizes for side in size)
    is_weight = type(metadata["weight"]) in (int, float) and 0 < metadata["weight"] < math.inf
    if not all(isinstance(text, str) for text in (*source, *names)) or not (are_sizes and is_weight):
        raise TypeError("its metadata has values of other types")
    return Statistics(Moments(float(metadata["weight"]), mean, scatter), source, names, features, sizes)


def _load_npz(path: Path) -> Statistics:
    with open_regular(path) as file, ZipFile(file) as archive:
        mean, covariance = (torch.from_numpy(_array(archive, name)) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError("mu and sigma are not a mean and a covariance")
    return Statistics(Gaussian(mean, covariance))


def _array(archive: ZipFile, name: str) -> np.ndarray:
    """An array of an .npz file, as float64. Raises `ValueError` where it is none, or larger than `MAX_ARRAY_BYTES`."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        shape, dtype = read_header(file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind != "f" or dtype.shape or not 0 < size <= min(entry.file_size, MAX_ARRAY_BYTES):
        raise ValueError(f"{name} is no array of numbers, or too large")
    with archive.open(entry) as file:
        values: np.ndarray = npy.read_array(file, allow_pickle=False).astype(np.float64)
    return values


def _problem(gaussian: Gaussian) -> str | None:
    """Why a mean and a covariance cannot be valid, if so; errors the size of float32 rounding are tolerated."""
    mean, covariance = gaussian.mean, gaussian.covariance
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        return "its mu or sigma is not finite"
    if (covariance - covariance.T).abs().max() > ROUNDING * covariance.abs().max():
        return "its sigma is not symmetric"
    values = torch.linalg.eigvalsh(covariance)
    if values[0] < -ROUNDING * values.abs().max() or values[-1] <= 0:
        return "its sigma has variances below 0"
    return None


def _read(path: Path) -> Image.Image:
    """A picture as 8-bit RGB."""
    with open_picture(path) as image:
        image.info.pop("transparency", None)  # dropped anyway; Pillow would warn about it
        return image.convert("RGB")


def _size(path: Path) -> tuple[int, int]:
    with open_picture(path) as image:
        return image.size


def _label(source: Source) -> str:
    return f"{source.name} ({source.fingerprint[:12]})"
