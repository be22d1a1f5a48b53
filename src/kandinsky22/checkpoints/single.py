"""A whole model in one safetensors file, and back into folders, byte for byte.

Tensors are called by their place, such as `decoder.unet.conv_in.weight`; the file's metadata holds every other file of the
folders under its path, and under `header PATH` the header of each file of tensors. So what is unpacked is what was packed,
to its SHA-256. Tensors are copied one after another and never held together. Imports no torch.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kandinsky22.checkpoints import catalog, tensors
from kandinsky22.checkpoints.about import CheckpointError, read_json
from kandinsky22.checkpoints.tensors import METADATA, SUFFIX, Entry, Tensors
from kandinsky22.files import atomic_write

TEXTS = (".json", ".txt", ".md")
LONGEST_TEXT = 16 << 20  # bytes
MARK, HEADER = "kandinsky22", "header "  # in the metadata: whose file this is, and of which file a header is
VERSION = "1"
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
PART_OF_CLASS = {
    "KandinskyV22PriorPipeline": catalog.PRIOR,
    "KandinskyV22PriorEmb2EmbPipeline": catalog.PRIOR,
    "KandinskyV22Pipeline": catalog.DECODER,
    "KandinskyV22Img2ImgPipeline": catalog.DECODER,
    "KandinskyV22InpaintPipeline": catalog.INPAINT,
    "KandinskyV22ControlnetPipeline": catalog.DEPTH,
    "KandinskyV22ControlnetImg2ImgPipeline": catalog.DEPTH,
}
Progress = Callable[[int, int], None]
"""Is told of bytes written, and of how many there are."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a model's folders hold, by place: texts, and files of tensors. left_out: what is no part of a model, and second
    copies of weights in another format."""

    texts: Mapping[str, str]
    files: Sequence[Tensors]
    left_out: Sequence[str] = ()

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(entry.bytes for file in self.files for entry in file.entries)


def convert(
    sources: Sequence[str], target: Path, dtype: str | None = None, progress: Progress | None = None
) -> Unpacked:
    """Write the model in `sources` to `target`: one file where that ends in .safetensors, else folders.

    sources: a model's name or folder, the folders of its pipelines one by one, or one file that this made. dtype: of all
    weights there (None: as they are). Returns what was written. Raises `ValueError` where the target is there already or
    has no room, and `CheckpointError` for sources that are no model. What is interrupted leaves nothing.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"{target} is there already; choose another name for what is converted")
    model = unpacked(sources)
    if dtype is not None:
        files = [tensors.in_dtype(file, DTYPES[dtype]) for file in model.files]
        model = Unpacked(model.texts, files, model.left_out)
    _check_room(target, model.bytes)
    progress = progress or (lambda done, total: None)
    (write_file if target.suffix == SUFFIX else write_folders)(model, target, progress)
    return model


def unpacked(sources: Sequence[str]) -> Unpacked:
    """What `sources` hold, not yet read: see `convert`."""
    if len(sources) == 1 and (file := Path(sources[0]).expanduser()).is_file():
        return of_file(file)
    folders: dict[str, Path] = {}
    for source in sources:
        for part, folder in _parts(source).items():
            if part in folders:
                raise ValueError(f"{folders[part]} and {folder} are both {part}/ folders; pass one")
            folders[part] = folder
    return of_folders(folders)


def of_folders(folders: Mapping[str, Path]) -> Unpacked:
    """What the folders of a model's parts hold. Raises `CheckpointError` for damaged files, or where there is none."""
    texts: dict[str, str] = {}
    files: list[Tensors] = []
    left_out: list[str] = []
    for part, root in folders.items():
        for path, of_use in _walk(root):
            place = (PurePosixPath(part) / path.relative_to(root).as_posix()).as_posix()
            is_weights = catalog.WEIGHTS_NAME.fullmatch(path.name)
            if of_use and path.name.endswith(TEXTS) and (text := _text(path)) is not None:
                texts[_in_safetensors(place)] = _index_in_safetensors(text) if is_weights else text
            elif of_use and (is_weights or path.suffix == SUFFIX):
                files.append(tensors.on_disk(path, _in_safetensors(place)))
            else:
                left_out.append(place)
    if not files:
        raise CheckpointError(f"there are no weights in {', '.join(map(str, folders.values()))}")
    return Unpacked(texts, files, left_out)


def of_file(path: Path) -> Unpacked:
    """What one file of a whole model holds. Raises `CheckpointError` where it is damaged, or something else."""
    header, start = tensors.read_header(path)
    metadata: dict[str, str] = json.loads(header).get(METADATA, {})
    if metadata.pop(MARK, "") != VERSION:
        raise CheckpointError(
            f"{path} is no whole model in one file; `kandinsky22 convert FOLDER {path.name}` makes those"
        )
    metadata.pop("format", None)
    here = {entry.name: entry for entry in tensors.entries(header)}
    files = []
    for place in metadata:
        if not _is_safe(place.removeprefix(HEADER), (SUFFIX,) if place.startswith(HEADER) else TEXTS):
            raise CheckpointError(f"{path} would write what is no part of a model, {place!r}; do not trust it")
    for name in [name for name in metadata if name.startswith(HEADER)]:
        file = Tensors(name.removeprefix(HEADER), metadata.pop(name), lambda name: ())
        try:
            moved = {entry.name: _moved(here[file.key(entry.name)], entry) for entry in file.entries}
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path} does not hold the {file.place} that it tells of ({error})") from error
        files.append(Tensors(file.place, file.header, tensors.reader(path, start, moved)))
    return Unpacked(metadata, files)


def write_file(model: Unpacked, target: Path, progress: Progress) -> None:
    """Write a model as one file."""
    listed = [(file.key(entry.name), entry, file.read) for file in model.files for entry in file.entries]
    if len({key for key, _, _ in listed}) < len(listed):
        raise CheckpointError("two files of the same folder hold a tensor of the same name; remove one of them")
    listed.sort(key=lambda tensor: tensors.by_size(tensor[1].dtype))
    texts = {**model.texts, **{HEADER + file.place: file.header for file in model.files}}
    metadata = {"format": "pt", MARK: VERSION, **texts}
    header = tensors.make_header([(key, entry.dtype, entry.shape, entry.bytes) for key, entry, _ in listed], metadata)
    with atomic_write(target) as partial, partial.open("wb") as to:
        tensors.write(to, header, ((read, entry) for _, entry, read in listed), _counting(progress, model.bytes))


def write_folders(model: Unpacked, target: Path, progress: Progress) -> None:
    """Write a model as folders, which appear together or not at all."""
    wrote = _counting(progress, model.bytes)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        for file in model.files:
            with atomic_write(partial / file.place) as place, place.open("wb") as to:
                tensors.write(to, file.header, ((file.read, entry) for entry in file.entries), wrote)
        for name, text in model.texts.items():
            with atomic_write(partial / name) as place:
                place.write_bytes(text.encode())
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _counting(progress: Progress, total: int) -> Callable[[int], None]:
    """Adds up what is written, for whoever is told of it."""
    done = 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return wrote


def _moved(here: Entry, told: Entry) -> Entry:
    """Where the bytes are that a file's header tells of. Raises `ValueError` where they are of another kind."""
    if (here.dtype, here.shape, here.bytes) != (told.dtype, told.shape, told.bytes):
        raise ValueError(f"{here.name} is {here.dtype} {here.shape}, not {told.dtype} {told.shape}")
    return here


def _parts(source: str) -> dict[str, Path]:
    """The folders that a source is: a model's, or a pipeline's by the class in its `model_index.json`."""
    index = Path(source).expanduser() / "model_index.json"
    if source == catalog.BOX or not index.is_file():
        return catalog.parts(source)
    name = read_json(index).get("_class_name")
    if name not in PART_OF_CLASS:
        raise CheckpointError(f"{index} is of a {name}, which is no pipeline of Kandinsky 2.2")
    return {PART_OF_CLASS[name]: index.parent}


def _walk(root: Path) -> Iterator[tuple[Path, bool]]:
    """The files of a pipeline's folder, and whether each is of use: a second copy of weights is not. None that is hidden:
    git and the hub's client keep theirs there."""
    for folder in (root, *sorted(path for path in root.rglob("*") if path.is_dir())):
        if not any(name.startswith(".") for name in folder.relative_to(root).parts):
            paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
            wanted = catalog.weights(path.name for path in paths)
            yield from ((p, p.name in wanted or not catalog.WEIGHTS_NAME.fullmatch(p.name)) for p in paths)


def _text(path: Path) -> str | None:
    """A text file's content, if it is one."""
    with suppress(UnicodeDecodeError):
        return path.read_bytes().decode() if path.stat().st_size <= LONGEST_TEXT else None
    return None


def _in_safetensors(place: str) -> str:
    """What a file of weights is called in safetensors: `pytorch_model.bin` becomes `model.safetensors`."""
    folder, name = place.rsplit("/", 1)
    if catalog.WEIGHTS_NAME.fullmatch(name):
        name = name.replace(".bin", SUFFIX)
        name = name.removeprefix("pytorch_") if name.startswith("pytorch_") else name
    return f"{folder}/{name}"


def _index_in_safetensors(text: str) -> str:
    """An index of several files, with what they are called in safetensors; the same text if that is what they are."""
    index = json.loads(text)
    renamed = {name: _in_safetensors(f"./{file}")[2:] for name, file in index.get("weight_map", {}).items()}
    return text if renamed == index.get("weight_map") else json.dumps({**index, "weight_map": renamed}, indent=2) + "\n"


def _is_safe(place: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a path that a file names stays in a model's folders, and is of a kind that belongs there."""
    names = place.split("/")
    plain = (
        name and not name.startswith(".") and name.isprintable() and not set(name) & set('\\:*?"<>|') for name in names
    )
    return names[0] in catalog.PARTS and len(names) > 1 and all(plain) and place.endswith(suffixes)


def _check_room(target: Path, size: int) -> None:
    there = next(folder for folder in target.absolute().parents if folder.exists())
    if (free := shutil.disk_usage(there).free) < size:
        raise ValueError(
            f"{target} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB is free there; make room, or go elsewhere"
        )
