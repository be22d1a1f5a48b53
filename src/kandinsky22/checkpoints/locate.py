"""Where a model's weights are on this machine: in the package, in a folder, or in the hub's cache. Imports no torch."""

from pathlib import Path

from kandinsky22.checkpoints import catalog, hub
from kandinsky22.checkpoints.catalog import BOX, DECODER, PARTS, PRIOR
from kandinsky22.files import expand


def part_folders(model: str) -> dict[str, Path]:
    """The folder of each part of a model that is on this machine; of a published model, in the hub's cache.

    model: "box", a folder, or a published model's name. Raises `ValueError` saying where it was looked for, and how to
    get it.
    """
    if catalog.is_remote(model) and (cached := hub.cached_parts(model)):
        return cached
    folder = model_folder(model)
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
        raise ValueError(
            f"{model} is one file; unpack it once with `kandinsky22 convert {model} FOLDER` and pass FOLDER"
        )
    if model in catalog.published():
        raise ValueError(
            f"the weights of {model} are not here; fetch them once with {catalog.download_commands(model)}"
        )
    known = ", ".join((BOX, *catalog.published()))
    raise ValueError(f"there is no model {model!r}; use {known}, or a folder with {DECODER}/ and {PRIOR}/ in it")
