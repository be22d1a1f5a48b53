"""A whole model in one safetensors file, and back into folders, byte for byte.

Tensors are named by their path, such as `decoder.unet.conv_in.weight`; the file's metadata contains every other file
of the folders under its path, and the header of each file of tensors under `header PATH`. So the unpacked files have
the SHA-256 of the packed ones. Tensors are copied one at a time and never all in memory. Imports no torch.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kandinsky22.checkpoints import catalog, locate, safetensors_file
from kandinsky22.checkpoints.dtypes import NETWORK_DTYPES, SAFETENSORS_NAMES
from kandinsky22.checkpoints.json_files import CheckpointError, read_json
from kandinsky22.checkpoints.safetensors_file import METADATA, SUFFIX, TensorEntry, TensorFile
from kandinsky22.checkpoints.weight_names import WEIGHT_FILE, choose_weights
from kandinsky22.files import atomic_folder, atomic_write, expand, parse_json

TEXTS = (".json", ".txt", ".md")
MAX_TEXT_BYTES = 16 << 20
FORMAT_KEY, HEADER = "kandinsky22", "header "  # keys of the metadata: this format's version, and a file's header
VERSION = "1"
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
"""Called with the number of bytes written so far, and of all."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model, by their path in its folder: texts, and files of tensors.

    left_out: files that are no part of a model, and second copies of weights in another format.
    """

    texts: Mapping[str, str]
    files: Sequence[TensorFile]
    left_out: Sequence[str] = ()

    @property
    def bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(entry.bytes for file in self.files for entry in file.entries)


def convert(
    sources: Sequence[str], target: Path, dtype: str | None = None, progress: Progress | None = None
) -> ModelFiles:
    """Write the model in `sources` to `target`: one file where that ends in .safetensors, else folders.

    sources: a model's name or folder, the folders of its pipelines one by one, or one file written by this function.
    dtype: of all weights in the target (None: as they are). Returns what was written. Raises `ValueError` where the
    target exists or the disk is full, and `CheckpointError` for sources that are no model. An interrupted call leaves
    no files.
    """
    if dtype is not None and dtype not in NETWORK_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(NETWORK_DTYPES)}, got {dtype!r}")
    error = f"{target} already exists; choose another name for the converted model"
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(error)
    model = read_model(sources)
    if dtype is not None:
        files = [safetensors_file.in_dtype(file, SAFETENSORS_NAMES[dtype]) for file in model.files]
        model = ModelFiles(model.texts, files, model.left_out)
    _check_free_space(target, model.bytes)
    progress = progress or (lambda done, total: None)
    try:
        (write_file if target.suffix == SUFFIX else write_folders)(model, target, progress)
    except FileExistsError:  # another process was faster
        raise ValueError(error) from None
    return model


def read_model(sources: Sequence[str]) -> ModelFiles:
    """The files of the model in `sources` (see `convert`), with their tensors not yet read."""
    if len(sources) == 1 and (file := expand(sources[0])).is_file():
        return read_file(file)
    folders: dict[str, Path] = {}
    for source in sources:
        for part, folder in _part_folders(source).items():
            if part in folders:
                raise ValueError(f"{folders[part]} and {folder} are both {part}/ folders; pass one")
            folders[part] = folder
    return read_folders(folders)


def read_folders(folders: Mapping[str, Path]) -> ModelFiles:
    """The files in the folders of a model's parts. Raises `CheckpointError` where there are none, or damaged ones."""
    texts: dict[str, str] = {}
    files: list[TensorFile] = []
    left_out: list[str] = []
    for part, root in folders.items():
        for path, is_used in _walk(root):
            name = (PurePosixPath(part) / path.relative_to(root).as_posix()).as_posix()
            is_weights = WEIGHT_FILE.fullmatch(path.name)
            if is_used and path.name.endswith(TEXTS) and (text := _text(path)) is not None:
                texts[_safetensors_name(name)] = _safetensors_index(text) if is_weights else text
            elif is_used and (is_weights or path.suffix == SUFFIX):
                files.append(safetensors_file.open_file(path, _safetensors_name(name)))
            else:
                left_out.append(name)
    if not files:
        raise CheckpointError(f"there are no weights in {', '.join(map(str, folders.values()))}")
    return ModelFiles(texts, files, left_out)


def read_file(path: Path) -> ModelFiles:
    """The files in one file of a whole model. Raises `CheckpointError` where it is damaged, or no such file."""
    header, start = safetensors_file.read_header(path)
    metadata: dict[str, str] = parse_json(header).get(METADATA, {})
    if metadata.pop(FORMAT_KEY, "") != VERSION:
        raise CheckpointError(
            f"{path} is no whole model in one file; write one with `kandinsky22 convert FOLDER {path.name}`"
        )
    metadata.pop("format", None)
    packed = {entry.name: entry for entry in safetensors_file.entries(header)}
    files = []
    for key in metadata:
        if not _is_safe(key.removeprefix(HEADER), (SUFFIX,) if key.startswith(HEADER) else TEXTS):
            raise CheckpointError(f"{path} would write a file that is no part of a model, {key!r}; do not trust it")
    for name in [name for name in metadata if name.startswith(HEADER)]:
        file = TensorFile(name.removeprefix(HEADER), metadata.pop(name), lambda name: ())
        try:
            sources = {entry.name: _check_same(packed[file.key(entry.name)], entry) for entry in file.entries}
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path} does not contain the {file.path} that it lists ({error})") from error
        files.append(TensorFile(file.path, file.header, safetensors_file.reader(path, start, sources)))
    return ModelFiles(metadata, files)


def write_file(model: ModelFiles, target: Path, progress: Progress) -> None:
    """Write a model as one file."""
    listed = [(file.key(entry.name), entry, file.read) for file in model.files for entry in file.entries]
    if len({key for key, _, _ in listed}) < len(listed):
        raise CheckpointError("two files of the same folder contain a tensor of the same name; remove one of them")
    listed.sort(key=lambda tensor: safetensors_file.sort_key(tensor[1].dtype))
    texts = {**model.texts, **{HEADER + file.path: file.header for file in model.files}}
    metadata = {"format": "pt", FORMAT_KEY: VERSION, **texts}
    header = safetensors_file.make_header(
        [(key, entry.dtype, entry.shape, entry.bytes) for key, entry, _ in listed], metadata
    )
    with atomic_write(target, exclusive=True) as partial, partial.open("wb") as to:
        safetensors_file.write(
            to, header, ((read, entry) for _, entry, read in listed), _counting(progress, model.bytes)
        )


def write_folders(model: ModelFiles, target: Path, progress: Progress) -> None:
    """Write a model as folders, which appear together or not at all."""
    wrote = _counting(progress, model.bytes)
    with atomic_folder(target, exclusive=True) as partial:
        for file in model.files:
            with atomic_write(partial / file.path) as path, path.open("wb") as to:
                safetensors_file.write(to, file.header, ((file.read, entry) for entry in file.entries), wrote)
        for name, text in model.texts.items():
            with atomic_write(partial / name) as path:
                path.write_bytes(text.encode())


def _counting(progress: Progress, total: int) -> Callable[[int], None]:
    """A function that adds up the bytes written and reports them."""
    done = 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return wrote


def _check_same(packed: TensorEntry, listed: TensorEntry) -> TensorEntry:
    """The packed tensor that a file's header lists. Raises `ValueError` where dtype, shape or size differ."""
    if (packed.dtype, packed.shape, packed.bytes) != (listed.dtype, listed.shape, listed.bytes):
        raise ValueError(f"{packed.name} is {packed.dtype} {packed.shape}, not {listed.dtype} {listed.shape}")
    return packed


def _part_folders(source: str) -> dict[str, Path]:
    """The folders that a source is: a model's, or a pipeline's by the class in its `model_index.json`."""
    index = expand(source) / "model_index.json"
    if source == catalog.BOX or not index.is_file():
        return locate.part_folders(source)
    name = read_json(index).get("_class_name")
    if name not in PART_OF_CLASS:
        raise CheckpointError(f"{index} is of a {name}, which is no pipeline of Kandinsky 2.2")
    return {PART_OF_CLASS[name]: index.parent}


def _walk(root: Path) -> Iterator[tuple[Path, bool]]:
    """The files of a pipeline's folder, and whether each is used: a second copy of weights is not.

    Hidden files, of git and of the hub's client, are skipped.
    """
    for folder in (root, *sorted(path for path in root.rglob("*") if path.is_dir())):
        if not any(name.startswith(".") for name in folder.relative_to(root).parts):
            paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
            chosen = choose_weights(path.name for path in paths)
            yield from ((p, p.name in chosen or not WEIGHT_FILE.fullmatch(p.name)) for p in paths)


def _text(path: Path) -> str | None:
    """A text file's content; None for other files."""
    with suppress(UnicodeDecodeError):
        return path.read_bytes().decode() if path.stat().st_size <= MAX_TEXT_BYTES else None
    return None


def _safetensors_name(path: str) -> str:
    """The name of a weight file in safetensors: `pytorch_model.bin` becomes `model.safetensors`."""
    folder, name = path.rsplit("/", 1)
    if WEIGHT_FILE.fullmatch(name):
        name = name.replace(".bin", SUFFIX)
        name = name.removeprefix("pytorch_") if name.startswith("pytorch_") else name
    return f"{folder}/{name}"


def _safetensors_index(text: str) -> str:
    """An index of several files, with their names in safetensors; the same text if they have these names already."""
    index = parse_json(text)
    if not isinstance(index, dict) or not isinstance(index.get("weight_map", {}), dict):
        return text
    renamed = {name: _safetensors_name(f"./{file}")[2:] for name, file in index.get("weight_map", {}).items()}
    return text if renamed == index.get("weight_map") else json.dumps({**index, "weight_map": renamed}, indent=2) + "\n"


def _is_safe(path: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a path named in a file stays within a model's folders, and has one of the suffixes."""
    names = path.split("/")
    plain = (
        name and not name.startswith(".") and name.isprintable() and not set(name) & set('\\:*?"<>|') for name in names
    )
    return names[0] in catalog.PARTS and len(names) > 1 and all(plain) and path.endswith(suffixes)


def _check_free_space(target: Path, size: int) -> None:
    existing = next(folder for folder in target.absolute().parents if folder.exists())
    if (free := shutil.disk_usage(existing).free) < size:
        raise ValueError(
            f"{target} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB is free there; make room, or use another disk"
        )
