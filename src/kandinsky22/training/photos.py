"""A person's own pictures as training data: looked through once, told apart by shape, and decoded anew at every look.

What cannot be used is passed over, and said. Knows nothing of what is learnt from them.
"""

import hashlib
import json
import math
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from kandinsky22.models.clip import CLIPImageProcessor
from kandinsky22.request import Picture
from kandinsky22.training.image_index import Judged, Size, Verdict
from kandinsky22.training.sources import PICTURES, Found, Part, Source, find

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # the decoders that are let near them
AESTHETIC = ("aesthetic", "aesthetic_score")
LICENCE = ("license", "licence")
GRAIN = 64  # pixels: what sides of shapes are multiples of
FEW = 20  # pictures of a source: with fewer, what is held out is trained on as well
MOST_HELD_OUT = 1000  # pictures of a source
NAMED = 3  # of what was passed over for a reason
THREADS = 8  # that decode; PIL lets the others run meanwhile
ROUND = 1024  # pictures that are waited for together while looking through them
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
TURNED = {5, 6, 7, 8}  # EXIF orientations that swap height and width

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""(how many are done, of how many)"""


@dataclass(frozen=True)
class Filter:
    """Which pictures are used. One that does not say what is asked about it is not.

    `side` is the least of the shorter side in pixels, `aesthetic` the least score, `licences` are those that will do, in
    capitals or not; none: all will do.
    """

    side: int = 0
    aesthetic: float | None = None
    licences: tuple[str, ...] = ()

    def refused(self, about: Mapping[str, Any]) -> str | None:
        """Why a picture is refused for what is said of it, if it is."""
        if self.aesthetic is not None and not _number(_said(about, AESTHETIC)) >= self.aesthetic:
            return f"without an aesthetic score of at least {self.aesthetic:g}"
        if self.licences and str(_said(about, LICENCE)).casefold() not in map(str.casefold, self.licences):
            return f"without a licence of {', '.join(self.licences)}"
        return None


EVERYTHING = Filter()


@dataclass
class Report:
    """What became of the pictures that were found. `passed` counts the reasons for passing over, `names` gives some names
    for each; `damaged` are tars that were read as far as they go, `few` the sources too small to spare what is held out.
    """

    found: int = 0
    used: int = 0
    enlarged: int = 0  # of those used
    held_out: int = 0  # of those used
    passed: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    damaged: list[str] = field(default_factory=list)
    few: list[str] = field(default_factory=list)

    def pass_over(self, reason: str, names: Sequence[str], count: int = 1) -> None:
        """Count `count` pictures, and keep a few of their names."""
        self.passed[reason] += count
        self.names[reason] += names[: NAMED - len(self.names[reason])]

    def add(self, other: "Report") -> None:
        """Count what another report counts."""
        self.found, self.used = self.found + other.found, self.used + other.used
        self.enlarged, self.held_out = self.enlarged + other.enlarged, self.held_out + other.held_out
        self.damaged, self.few = self.damaged + other.damaged, self.few + other.few
        for reason, count in other.passed.items():
            self.pass_over(reason, other.names[reason], count)

    def __str__(self) -> str:
        said = [f"used {self.used} of {self.found} pictures"]
        if self.passed:
            each = (f"{n} {reason} ({_listed(self.names[reason], n)})" for reason, n in self.passed.most_common())
            said.append(f"passed over {', '.join(each)}")
        if self.enlarged:
            said.append(f"enlarged {self.enlarged} that are smaller than what is trained on")
        if self.held_out:
            said.append(f"held out {self.held_out}")
        if self.few:
            said.append(f"trained as well on what is held out of {', '.join(self.few)}, which has fewer than {FEW}")
        if self.damaged:
            names = _listed(self.damaged[:NAMED], len(self.damaged))
            said.append(f"read {len(self.damaged)} damaged .tar as far as it goes ({names})")
        return "; ".join(said)


class Photo(NamedTuple):
    """A picture that can be used. `stamp` changes with its file; height and width are those of it upright, in pixels."""

    name: str
    picture: Part
    stamp: str
    height: int
    width: int
    wordings: tuple[str, ...]

    def decoded(self) -> Image.Image:
        """It upright, in RGB, where transparent over white. Raises `ValueError` where the file is no longer what it was."""
        try:
            with Image.open(BytesIO(self.picture.read()), formats=FORMATS) as image:
                image.load()
                return Picture.of(image).rgb
        except BROKEN as error:
            raise ValueError(
                f"cannot read {self.name} in {self.picture.path}, which has changed since it was looked through; start anew"
            ) from error


class Photos:
    """Pictures of one source that are trained on in one shape; in the place of `Compositions`.

    Every picture is resized to cover `size`, (height, width) in pixels, and cropped to its centre; `side` is the shorter side.
    `share` is how often a step is taken with them. `processor` prepares the pictures, uncropped, for CLIP.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        size: tuple[int, int],
        share: float = 1.0,
        processor: CLIPImageProcessor | None = None,
    ) -> None:
        self.photos, self.size, self.share, self.processor = photos, size, share, processor
        self.side = min(size)

    @cached_property
    def look(self) -> str:
        """What tells the pixels from others, whatever their captions: what is computed from them alone goes by it."""
        return f"photos-{_hash([[*self.size], *([p.name, p.stamp] for p in self.photos)])}-{'{}x{}'.format(*self.size)}"

    @cached_property
    def name(self) -> str:
        """What tells these pictures and captions from others."""
        return f"{self.look}-{_hash([p.wordings for p in self.photos])}"

    def __len__(self) -> int:
        return len(self.photos)

    def pictures(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Pictures as float [B, 3, H, W] in [-1, 1]. Raises `ValueError` for one whose file has changed."""
        return _to_float(self._each(self._fitted, indices))

    def crops(self, indices: Sequence[int] | np.ndarray, corners: np.ndarray, size: int) -> Tensor:
        """Squares of `size` pixels cut from pictures, as float [B, 3, size, size] in [-1, 1]; `corners` [B, 2] are their
        upper left ones, as (top, left)."""
        whole = self._each(self._fitted, indices)
        return _to_float([pixels[y : y + size, x : x + size] for pixels, (y, x) in zip(whole, corners, strict=True)])

    def seen(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Pictures as CLIP sees them, float [B, 3, S, S]: as the pipelines would show them to it, not as they are cropped."""
        processor = self.processor
        assert processor is not None
        return torch.cat(self._each(lambda photo: processor([photo.decoded()]), indices))

    def captions(self, indices: Sequence[int] | np.ndarray, rng: np.random.Generator) -> list[str]:
        """One wording of each picture's caption, at random; "" where it has none."""
        every = [self.photos[i].wordings or ("",) for i in indices]
        return [wordings[rng.integers(len(wordings))] for wordings in every]

    def _fitted(self, photo: Photo) -> np.ndarray:
        height, width = self.size
        return np.asarray(ImageOps.fit(photo.decoded(), (width, height), Image.Resampling.LANCZOS))

    def _each(self, look: Callable[[Photo], T], indices: Sequence[int] | np.ndarray) -> list[T]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(look, [self.photos[i] for i in indices]))


def shapes(side: int, most: float = 2.0) -> list[tuple[int, int]]:
    """The (height, width) in pixels that pictures are trained in; the square first, then by how long they are.

    Sides are multiples of 64. The longer side is any from that of the square on, and the shorter one the largest with which
    the area is at most side**2; both ways round, and none longer than `most` (at least 1) to 1. Raises `ValueError` for a
    side below 64.
    """
    if side < GRAIN:
        raise ValueError(f"pictures are trained on with sides of at least {GRAIN} pixels, got {side}; use {GRAIN}")
    found = []
    longer = side // GRAIN * GRAIN
    while (shorter := min(longer, side**2 // longer // GRAIN * GRAIN)) * most >= longer:
        found += [(shorter, longer), (longer, shorter)] if shorter < longer else [(shorter, longer)]
        longer += GRAIN
    return found


def read(
    sources: Sequence[Source],
    side: int,
    *,
    filter: Filter = EVERYTHING,
    captioned: bool = True,
    processor: CLIPImageProcessor | None = None,
    held_out: float = 0.02,
    progress: Progress | None = None,
    judged: Judged | None = None,
) -> tuple[list[Photos], list[Photos], Report]:
    """The pictures to train on, those held out to measure progress, and what was passed over.

    Each is told apart by source and by the one of `shapes(side)` whose aspect is nearest, and the shares of each sum to 1.
    `captioned`: pictures without a caption are of no use. `held_out` is a share of each source, at least one picture and at
    most 1000; which ones follows from their names, so no picture that was trained on is held out when others are added. Of
    a source of fewer than 20 pictures they are trained on as well. At 0 none is held out. Every picture is decoded once, but
    for those that are `judged` already, and others are added there; `progress` is told of each. Raises `ValueError` for a
    source of which nothing can be used, and for metadata that cannot be read.
    """
    if not 0 <= held_out <= 0.5:
        raise ValueError(f"the share that is held out must be in [0, 0.5], got {held_out:g}; try 0.02")
    allowed, found = shapes(side), [find(source.path) for source in sources]
    weights, of = sum(source.weight for source in sources), sum(len(pictures) for pictures, _ in found)
    training: list[Photos] = []
    unseen: list[Photos] = []
    total, done = Report(), 0
    for source, (pictures, damaged) in zip(sources, found, strict=True):
        report, photos = Report(found=len(pictures), damaged=damaged), []
        for picture, looked in _looked_through(pictures, filter, captioned, judged or Judged()):
            if isinstance(looked, Photo):
                photos.append(looked)
            else:
                report.pass_over(looked, [picture.name])
            done += 1
            if progress is not None:
                progress(done, of)
        report.used = len(photos)
        if not photos:
            raise ValueError(_nothing(source.path, report))
        kept = _held_out([photo.name for photo in photos], held_out)
        report.held_out = len(kept)
        if kept and len(photos) < FEW:
            report.few.append(source.path.name)
        trained = [photo for i, photo in enumerate(photos) if i not in kept or len(photos) < FEW]
        for part, into in ((trained, training), ([photos[i] for i in sorted(kept)], unseen)):
            into += _by_shape(part, allowed, source.weight / weights, processor)
        report.enlarged = sum(
            bucket.size[0] > photo.height or bucket.size[1] > photo.width
            for bucket in _by_shape(photos, allowed, 1.0, None)
            for photo in bucket.photos
        )
        total.add(report)
    return training, unseen, total


def _by_shape(
    photos: Sequence[Photo], allowed: Sequence[tuple[int, int]], share: float, processor: CLIPImageProcessor | None
) -> list[Photos]:
    """Pictures in the shapes nearest to theirs; a crop takes the same share of a picture that is twice as long and half."""
    buckets: dict[tuple[int, int], list[Photo]] = {size: [] for size in allowed}
    for photo in photos:
        aspect = math.log(photo.width / photo.height)
        buckets[min(allowed, key=lambda size: abs(math.log(size[1] / size[0]) - aspect))].append(photo)
    return [Photos(held, size, share * len(held) / len(photos), processor) for size, held in buckets.items() if held]


def _held_out(names: Sequence[str], share: float) -> set[int]:
    """Which rows are held out: those of the smallest hashes, so that adding pictures only ever frees some."""
    hashes = [int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8]) for name in names]
    count = sum(value < share * 2**64 for value in hashes)
    order = sorted(range(len(names)), key=hashes.__getitem__)
    return set(order[: min(max(count, 1), MOST_HELD_OUT)]) if share else set()


def _looked_through(
    pictures: Sequence[Found], filter: Filter, captioned: bool, judged: Judged
) -> Iterator[tuple[Found, Photo | str]]:
    """Each picture with what it is, or why it is passed over."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(pictures), ROUND):
            some = pictures[start : start + ROUND]
            looked = pool.map(lambda found: _looked_at(found, filter, captioned, judged), some)
            yield from zip(some, looked, strict=True)
            judged.write()


def _looked_at(found: Found, filter: Filter, captioned: bool, judged: Judged) -> Photo | str:
    about, wordings = found.about()
    if (reason := filter.refused(about)) is not None:
        return reason
    if captioned and not wordings:
        return "without a readable caption"
    part = found.picture
    try:
        status = part.path.stat()
        stamp = f"{status.st_size} {status.st_mtime_ns} {part.offset}"
        is_known, size = judged.known(part, stamp)
        if not is_known:
            size = decoded_size(part.read())
            judged.note(part, stamp, size)
    except OSError:  # it cannot be read now, and perhaps another time
        size = None
    if size is None:
        return "broken"
    if min(size) < filter.side:
        return f"smaller than {filter.side} pixels"
    return Photo(found.name, part, stamp, *size, wordings)


def decoded_size(file: bytes) -> Verdict:
    """The size of a picture, all of which is decoded; None for one that is broken."""
    try:
        with Image.open(BytesIO(file), formats=FORMATS) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation) in TURNED
            width, height = image.size[::-1] if turned else image.size
            image.draft(None, (1, 1))  # all of a JPEG is read, and an eighth of its pixels is worked out
            image.load()
    except BROKEN:
        return None
    return Size(height, width)


def _said(about: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((about[key] for key in keys if about.get(key) is not None), None)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _nothing(path: Path, report: Report) -> str:
    if not report.found:
        damaged = f" ({report})" if report.damaged else ""
        return (
            f"{path} holds no pictures{damaged}; give a folder or a .tar with files that end in {', '.join(PICTURES)}"
        )
    return f"nothing in {path} can be used: {report}; repair the pictures, add captions or ask for less"


def _listed(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + (", ..." if count > len(names) else "")


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _to_float(pixels: Sequence[np.ndarray]) -> Tensor:
    """uint8 [H, W, 3] each, as float [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(pixels)).movedim(-1, 1).to(torch.float32) / 127.5 - 1
