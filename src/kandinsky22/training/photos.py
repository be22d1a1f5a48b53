"""The user's pictures as training data: checked once, grouped by shape, and decoded again at each draw.

Pictures that cannot be used are skipped and reported. Independent of what is learned from them.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from kandinsky22.models.clip import CLIPImageProcessor
from kandinsky22.request import Picture
from kandinsky22.request.limits import MAX_FILE_BYTES
from kandinsky22.request.picture_file import open_picture
from kandinsky22.training.image_index import Entry, ImageIndex, Size
from kandinsky22.training.sources import HINT, PICTURES, ByteRange, Source, SourcePicture, find_pictures

AESTHETIC = ("aesthetic", "aesthetic_score")  # metadata keys
LICENCE = ("license", "licence")
GRAIN = 64  # pixels: sides of training shapes are multiples of it
MIN_TO_SEPARATE = 20  # pictures of a source: with fewer, held-out pictures are trained on as well
MAX_HELD_OUT = 1000  # pictures of a source
NO_HINT = "without a control picture, NAME.hint.png (--depth-model estimates depth instead)"
MAX_NAMES = 3  # names given of pictures skipped for one reason
THREADS = 8  # that decode; PIL releases the interpreter lock meanwhile
CHUNK = 1024  # pictures checked before the index is written
TRANSPOSED = {5, 6, 7, 8}  # EXIF orientations that swap height and width

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""(pictures done, pictures in all)"""


@dataclass(frozen=True)
class Filter:
    """Which pictures are used; one without metadata that a condition needs is not.

    `side` is the minimum of the shorter side in pixels, `aesthetic` the minimum score, `licences` are those allowed, in
    any case; none: all are.
    """

    side: int = 0
    aesthetic: float | None = None
    licences: tuple[str, ...] = ()

    def refusal(self, metadata: Mapping[str, Any]) -> str | None:
        """Why a picture with this metadata is not used, or None."""
        if self.aesthetic is not None and not _number(_first(metadata, AESTHETIC)) >= self.aesthetic:
            return f"without an aesthetic score of at least {self.aesthetic:g}"
        if self.licences and str(_first(metadata, LICENCE)).casefold() not in map(str.casefold, self.licences):
            return f"without a licence of {', '.join(self.licences)}"
        return None


NO_FILTER = Filter()


@dataclass
class Report:
    """How the pictures of the sources were used.

    `skipped` counts pictures by the reason why they are not used, `names` gives a few names for each reason. `damaged`,
    `unread` and `unmatched` are as in `sources.Contents`, `small_sources` those trained on completely, held-out
    pictures included.
    """

    total: int = 0  # pictures in the sources
    used: int = 0
    enlarged: int = 0  # of those used
    held_out: int = 0  # of those used
    skipped: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    damaged: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    small_sources: list[str] = field(default_factory=list)

    def skip(self, reason: str, names: Sequence[str], count: int = 1) -> None:
        """Count `count` skipped pictures, and store a few of their names."""
        self.skipped[reason] += count
        self.names[reason] += names[: MAX_NAMES - len(self.names[reason])]

    def add(self, other: "Report") -> None:
        """Add the counts of another report."""
        self.total, self.used = self.total + other.total, self.used + other.used
        self.enlarged, self.held_out = self.enlarged + other.enlarged, self.held_out + other.held_out
        for name in ("damaged", "unread", "unmatched", "small_sources"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.skipped.items():
            self.skip(reason, other.names[reason], count)

    def __str__(self) -> str:
        parts = [f"used {self.used} of {self.total} pictures"]
        if self.skipped:
            reasons = (f"{n} {reason} ({_listed(self.names[reason], n)})" for reason, n in self.skipped.most_common())
            parts.append(f"passed over {', '.join(reasons)}")
        if self.enlarged:
            parts.append(f"enlarged {self.enlarged} that are smaller than what is trained on")
        if self.held_out:
            parts.append(f"held out {self.held_out}")
        if self.small_sources:
            sources = ", ".join(self.small_sources)
            parts.append(f"trained as well on what is held out of {sources}, which has fewer than {MIN_TO_SEPARATE}")
        for names, what in (
            (self.damaged, "read {} damaged .tar as far as it goes"),
            (self.unread, "other files, not read: {}"),
            (self.unmatched, "rows of metadata without a picture: {}"),
        ):
            if names:
                parts.append(f"{what.format(len(names))} ({_listed(names[:MAX_NAMES], len(names))})")
        return "; ".join(parts)


class Photo(NamedTuple):
    """A usable picture. `stamp` changes with its file; `height` and `width` are in pixels, after EXIF orientation.

    `digest` identifies the file's content; `licence` is empty if none is stated; `hint` is its control picture.
    """

    name: str
    picture: ByteRange
    stamp: str
    height: int
    width: int
    captions: tuple[str, ...]  # alternatives
    digest: str = ""
    licence: str = ""
    hint: ByteRange | None = None

    def decode(self) -> Image.Image:
        """The picture after EXIF orientation, in RGB, over white. Raises `ValueError` if its file has changed."""
        return _decode(self.picture, self.name)

    def decode_hint(self) -> Image.Image:
        """The control picture, as `decode`."""
        assert self.hint is not None
        return _decode(self.hint, f"the control picture of {self.name}")


def _decode(file: ByteRange, name: str) -> Image.Image:
    try:
        return Picture.of(file.read(MAX_FILE_BYTES)).rgb
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read {name} in {file.path}, which has changed since it was checked; start again"
        ) from error


class Photos:
    """Pictures of one source that are trained on in one shape (implements `data.Pictures`).

    Every picture is resized to cover `size`, (height, width) in pixels, and cropped to its centre; `side` is the
    shorter side. `share` is the probability that a step draws from this set. `processor` is CLIP's preprocessing, which
    gets the uncropped pictures. `hinted`: every picture has a control picture, which is learnt from.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        size: tuple[int, int],
        share: float = 1.0,
        processor: CLIPImageProcessor | None = None,
        *,
        hinted: bool = False,
    ) -> None:
        self.photos, self.size, self.share, self.processor = photos, size, share, processor
        self.side, self.hinted = min(size), hinted

    @cached_property
    def pixels_name(self) -> str:
        """Identifies the pictures without their captions: names what is computed from the pixels alone."""
        return f"photos-{_hash([[*self.size], *([p.name, p.stamp] for p in self.photos)])}-{'{}x{}'.format(*self.size)}"

    @cached_property
    def name(self) -> str:
        """Identifies the pictures, their captions, and the control pictures if they are learnt from."""
        hints = f"-{_hash([_stamp(p.hint) for p in self.photos if p.hint])}" if self.hinted else ""
        return f"{self.pixels_name}-{_hash([p.captions for p in self.photos])}{hints}"

    @property
    def digests(self) -> list[str]:
        """Identifies the content of each picture's file."""
        return [photo.digest for photo in self.photos]

    def __len__(self) -> int:
        return len(self.photos)

    def pictures(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Pictures as float [B, 3, H, W] in [-1, 1]. Raises `ValueError` for one whose file has changed."""
        return _to_float(self._map(lambda photo: self._fit(photo.decode()), indices))

    def hints(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Control pictures, uint8 [B, 3, H, W]. Raises `ValueError` for one whose file has changed."""
        pixels = self._map(lambda photo: self._fit(photo.decode_hint()), indices)
        return torch.from_numpy(np.stack(pixels)).movedim(-1, 1)

    def crops(self, indices: Sequence[int] | np.ndarray, corners: np.ndarray, size: int) -> Tensor:
        """Squares of `size` pixels, float [B, 3, size, size] in [-1, 1]; `corners` [B, 2] are their (top, left)."""
        pictures = self._map(lambda photo: self._fit(photo.decode()), indices)
        return _to_float([pixels[y : y + size, x : x + size] for pixels, (y, x) in zip(pictures, corners, strict=True)])

    def clip_inputs(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Pictures preprocessed for CLIP's image encoder, float [B, 3, S, S]: uncropped, as the pipelines do it."""
        processor = self.processor
        assert processor is not None
        return torch.cat(self._map(lambda photo: processor([photo.decode()]), indices))

    def captions(self, indices: Sequence[int] | np.ndarray, rng: np.random.Generator) -> list[str]:
        """One of each picture's captions, drawn from `rng`; "" for a picture without one."""
        alternatives = [self.photos[i].captions or ("",) for i in indices]
        return [captions[rng.integers(len(captions))] for captions in alternatives]

    def _fit(self, picture: Image.Image) -> np.ndarray:
        height, width = self.size
        return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))

    def _map(self, function: Callable[[Photo], T], indices: Sequence[int] | np.ndarray) -> list[T]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(function, [self.photos[i] for i in indices]))


class Hints:
    """The control pictures of some pictures, read from their files when they are indexed: uint8 [N, 3, H, W]."""

    def __init__(self, photos: Photos) -> None:
        self._photos = photos
        self.shape = torch.Size((3, *photos.size))

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """These rows, [B, 3, H, W]."""
        return self._photos.hints(rows.numpy())


def shapes(side: int, max_aspect: float = 2.0) -> list[tuple[int, int]]:
    """The (height, width) in pixels of the training shapes; the square first, then with growing aspect ratio.

    Sides are multiples of 64. The longer side runs up from that of the square, and the shorter one is the largest with
    which the area is at most side**2; in both orientations, up to an aspect ratio of `max_aspect` (at least 1). Raises
    `ValueError` for a side below 64.
    """
    if side < GRAIN:
        raise ValueError(f"pictures are trained on with sides of at least {GRAIN} pixels, got {side}; use {GRAIN}")
    sizes = []
    longer = side // GRAIN * GRAIN
    while (shorter := min(longer, side**2 // longer // GRAIN * GRAIN)) * max_aspect >= longer:
        sizes += [(shorter, longer), (longer, shorter)] if shorter < longer else [(shorter, longer)]
        longer += GRAIN
    return sizes


def read_sources(
    sources: Sequence[Source],
    side: int,
    *,
    filter: Filter = NO_FILTER,
    captioned: bool = True,
    hinted: bool = False,
    processor: CLIPImageProcessor | None = None,
    held_out: float = 0.02,
    progress: Progress | None = None,
    index: ImageIndex | None = None,
) -> tuple[list[Photos], list[Photos], Report]:
    """The sets to train on, the held-out sets, and a report of what was skipped.

    Pictures are grouped by source and by the one of `shapes(side)` with the nearest aspect ratio; the shares of the
    sets sum to 1. `captioned`: pictures without a caption are skipped; `hinted`: those without a control picture.
    `held_out` is the share held out of each source,
    at least one picture and at most 1000; which ones follows from a hash of their names, so no picture that was trained
    on becomes held out when others are added. Of a source of fewer than 20 pictures they are trained on as well. At 0
    none is held out. Every picture is decoded once, except those in the `index`, to which the others are added;
    `progress` is called after each. Raises `ValueError` for a source without usable pictures, and for metadata that
    cannot be read.
    """
    if not 0 <= held_out <= 0.5:
        raise ValueError(f"the share that is held out must be in [0, 0.5], got {held_out:g}; try 0.02")
    allowed, contents = shapes(side), [find_pictures(source.path) for source in sources]
    weights, total = sum(source.weight for source in sources), sum(len(content.pictures) for content in contents)
    training: list[Photos] = []
    validation: list[Photos] = []
    summary, done = Report(), 0
    for source, content in zip(sources, contents, strict=True):
        report, photos = Report(len(content.pictures)), []
        report.damaged, report.unread, report.unmatched = content.damaged, content.unread, content.unmatched
        for picture, checked in _check_all(content.pictures, filter, captioned, hinted, index or ImageIndex()):
            if isinstance(checked, Photo):
                photos.append(checked)
            else:
                report.skip(checked, [picture.name])
            done += 1
            if progress is not None:
                progress(done, total)
        report.used = len(photos)
        if not photos:
            raise ValueError(_unusable(source.path, report))
        rows = _held_out([photo.name for photo in photos], held_out)
        report.held_out = len(rows)
        if rows and len(photos) < MIN_TO_SEPARATE:
            report.small_sources.append(source.path.name)
        trained = [photo for i, photo in enumerate(photos) if i not in rows or len(photos) < MIN_TO_SEPARATE]
        for part, into in ((trained, training), ([photos[i] for i in sorted(rows)], validation)):
            into += _by_shape(part, allowed, source.weight / weights, processor, hinted)
        report.enlarged = sum(
            bucket.size[0] > photo.height or bucket.size[1] > photo.width
            for bucket in _by_shape(photos, allowed, 1.0, None)
            for photo in bucket.photos
        )
        summary.add(report)
    return training, validation, summary


def _by_shape(
    photos: Sequence[Photo],
    allowed: Sequence[tuple[int, int]],
    share: float,
    processor: CLIPImageProcessor | None,
    hinted: bool = False,
) -> list[Photos]:
    """Pictures grouped by the nearest shape, comparing logarithms of aspect ratios: too wide counts like too high."""
    buckets: dict[tuple[int, int], list[Photo]] = {size: [] for size in allowed}
    for photo in photos:
        aspect = math.log(photo.width / photo.height)
        buckets[min(allowed, key=lambda size: abs(math.log(size[1] / size[0]) - aspect))].append(photo)
    return [
        Photos(group, size, share * len(group) / len(photos), processor, hinted=hinted)
        for size, group in buckets.items()
        if group
    ]


def _held_out(names: Sequence[str], share: float) -> set[int]:
    """The rows that are held out: those with the smallest hashes, so none is held out later that was trained on."""
    hashes = [int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8]) for name in names]
    count = sum(value < share * 2**64 for value in hashes)
    order = sorted(range(len(names)), key=hashes.__getitem__)
    return set(order[: min(max(count, 1), MAX_HELD_OUT)]) if share else set()


def _check_all(
    pictures: Sequence[SourcePicture], filter: Filter, captioned: bool, hinted: bool, index: ImageIndex
) -> Iterator[tuple[SourcePicture, Photo | str]]:
    """Each picture with its `Photo`, or with the reason why it is skipped."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(pictures), CHUNK):
            chunk = pictures[start : start + CHUNK]
            checked = pool.map(lambda picture: _check(picture, filter, captioned, hinted, index), chunk)
            yield from zip(chunk, checked, strict=True)
            index.write()


def _check(picture: SourcePicture, filter: Filter, captioned: bool, hinted: bool, index: ImageIndex) -> Photo | str:
    metadata, captions = picture.describe()
    if (reason := filter.refusal(metadata)) is not None:
        return reason
    if captioned and not captions:
        return "without a readable caption"
    content, hint = picture.picture, picture.sidecars.get(HINT)
    if hinted and (hint is None or not _is_readable(hint)):
        return NO_HINT
    try:
        stamp = _stamp(content)
        entry = index.lookup(content, stamp)
        if entry is None:
            file = content.read(MAX_FILE_BYTES)
            entry = Entry(stamp, hashlib.sha256(file).hexdigest()[:32], decoded_size(file))
            index.add(content, entry)
    except (OSError, ValueError):  # not in the index: it may be readable another time
        return "broken"
    if entry.size is None:
        return "broken"
    if min(entry.size) < filter.side:
        return f"smaller than {filter.side} pixels"
    return Photo(
        picture.name, content, stamp, *entry.size, captions, entry.digest, str(_first(metadata, LICENCE) or ""), hint
    )


def _stamp(content: ByteRange) -> str:
    """Changes with a file; cheap to compute."""
    status = content.path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {content.offset}"


def _is_readable(picture: ByteRange) -> bool:
    try:
        return decoded_size(picture.read(MAX_FILE_BYTES)) is not None
    except (OSError, ValueError):
        return False


def decoded_size(file: bytes) -> Size | None:
    """The size of a picture, which is decoded completely; None for a broken one."""
    try:
        with open_picture(file) as image:
            transposed = image.getexif().get(ExifTags.Base.Orientation) in TRANSPOSED
            width, height = image.size[::-1] if transposed else image.size
            image.draft(None, (1, 1))  # all of a JPEG is read, and an eighth of its pixels computed
            image.load()
    except ValueError:
        return None
    return Size(height, width)


def _first(metadata: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((metadata[key] for key in keys if metadata.get(key) is not None), None)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _unusable(path: Path, report: Report) -> str:
    if not report.total:
        others = f" ({report})" if report.damaged or report.unread else ""
        extensions = ", ".join(PICTURES)
        return f"{path} holds no pictures{others}; give a folder or a .tar with files that end in {extensions}"
    return f"nothing in {path} can be used: {report}; repair the pictures, add captions or ask for less"


def _listed(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + (", ..." if count > len(names) else "")


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _to_float(pixels: Sequence[np.ndarray]) -> Tensor:
    """Pixels, uint8 [H, W, 3] each -> float [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(pixels)).movedim(-1, 1).to(torch.float32) / 127.5 - 1
