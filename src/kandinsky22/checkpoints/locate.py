"""Where a model's weights are on this machine: in the package, in a folder, or in the hub's cache. Imports no torch."""

import hashlib
from pathlib import Path

from kandinsky22.checkpoints import catalog, hub
from kandinsky22.checkpoints.catalog import BOX, DECODER, PARTS, PRIOR
from kandinsky22.console import echo
from kandinsky22.files import cache_dir, expand


def part_folders(model: str) -> dict[str, Path]:
    """The folder of each part of a model that is on this machine; of a published model, in the hub's cache.

    model: "box", a folder, or a published model's name. Raises `ValueError` saying where it was looked for, and how to
    get it.
    """
    if catalog.is_remote(model) and (cached := hub.cached_parts(model)):
        return cached
    folder = model_folder(model)
    trained = folder / "model"
    if any((trained / part).is_dir() for part in PARTS) and not any(
        (folder / part / "model_index.json").is_file() for part in PARTS
    ):  # the run of a prior is in a folder of the same name
        raise ValueError(f"{folder} holds the run of a training, not a model; did you mean {trained}?")
    folders = {part: folder / part for part in PARTS if (folder / part).is_dir()}
    if not folders:
        raise ValueError(f"{folder} has no {DECODER}/ folder; a model is a folder with {PRIOR}/ and {DECODER}/ in it")
    return folders


def model_folder(model: str) -> Path:
    """The folder of a model, with `decoder/` and `prior/` in it. Raises `ValueError` saying where it was looked for."""
    if model == BOX:
        return Path(__file__).parents[1] / "weights"
    path = expand(model)
    if path.is_dir():
        return path
    if path.is_file():
        return _unpacked(path)
    if model in catalog.published():
        raise ValueError(
            f"the weights of {model} are not here; fetch them once with {catalog.download_commands(model)}"
        )
    known = ", ".join((BOX, *catalog.published()))
    raise ValueError(f"there is no model {model!r}; use {known}, or a folder with {DECODER}/ and {PRIOR}/ in it")


def _unpacked(file: Path) -> Path:
    """The folder of a model in one file, which is unpacked into the user's cache when it is first used.

    Raises `CheckpointError` for a file that `single_file` has not written, and `ValueError` for a full disk.
    """
    from kandinsky22.checkpoints import single_file  # which imports this module

    status = file.stat()
    identity = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
    folder = cache_dir() / "unpacked" / f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        single_file.read_file(file)  # raises before anything is said
        echo(f"unpacking {file} into {folder} ({status.st_size / 1e9:.1f} GB), once", error=True)
        single_file.convert([str(file)], folder)
    return folder
