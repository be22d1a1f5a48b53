"""`kandinsky22 replay`: a picture painted again from its recipe, and whether it came out the same, and if not, why."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from kandinsky22.checkpoints import catalog, locate
from kandinsky22.cli import files, paint
from kandinsky22.cli.options import Parser
from kandinsky22.cli.show import one_file
from kandinsky22.cli.terminal import display, printable
from kandinsky22.imaging.images import Recipe, read_recipe
from kandinsky22.request import Picture, Request
from kandinsky22.request.parts import said

DIFFERENT = 1  # status: nothing differs that should matter, and yet the pixels do


def main(arguments: Sequence[str]) -> int:
    """Paint a picture again, as exactly as this machine can, and compare."""
    usage = "kandinsky22 replay [options] FILE"
    parser = Parser("kandinsky22 replay", "Paint a picture again, to the same pixels.", usage=usage)
    parser.option("model", metavar="FOLDER", help="the model (default: the one that painted it)")
    parser.option(
        "picture", metavar="FILE", action="append", help="a picture it began with, if that is not beside FILE"
    )
    parser.add_edge()
    options, words, _ = parser.parse(arguments)
    file = one_file(words, "replay")
    recipe = read_recipe(file)
    with Image.open(file) as stored:
        then = stored.convert("RGB")
    request, index = _with_its_company(recipe)
    request = replace(request, model=options.get("model", request.model))
    request = request.with_pictures(_found(request, Path(file), options.get("picture", [])))
    place = files.Place.of(options.get("output", paint.OUTPUT))
    backend = paint.load(_findable(request.model), _as_then(recipe.made_by) | options, request)
    with display(options.get("quiet", False)) as shown:
        result = paint.carry_out(request, backend, shown, place)
    picture = result.pictures[index]
    apart = _furthest(then, picture.image)
    differences = list(_differences(recipe.made_by, picture.made_by))
    print(files.save_picture(picture, place))
    for line in differences:
        print(printable(line))
    same = {0: f"the pixels are those of {file}", 1: f"the pixels are those of {file}, to rounding"}
    print(same.get(apart, f"the pixels differ from {file} by up to {apart} of 255"))
    if apart > 1 and not differences:
        print("nothing that should matter differs: was the file edited?")
        return DIFFERENT
    return 0


def _found(request: Request, file: Path, given: Sequence[str]) -> dict[str, Picture]:
    """The pictures that a request began with: those given, or those of the same name and pixels beside the file.

    Raises `ValueError` for one that is nowhere.
    """
    at_hand = {picture.sha256: picture for picture in map(Picture.of, given)}
    found = {}
    for place, picture in request.pictures.items():
        for folder in (file.parent, Path()):
            if picture.sha256 not in at_hand and picture.name and (folder / picture.name).is_file():
                there = Picture.of(folder / picture.name)
                at_hand[there.sha256] = there
        if picture.sha256 not in at_hand:
            raise ValueError(
                f"the picture began with {said(picture)}, which is not beside it; pass it with --picture FILE"
            )
        found[place] = at_hand[picture.sha256]
    return found


def _findable(model: str) -> str:
    """The model, if it can be found: a picture knows the name of the folder, and not where it was."""
    try:
        if not catalog.is_remote(model):
            locate.part_folders(model)
    except ValueError as error:
        raise ValueError(
            f"the picture was painted by a model called {model!r}; pass its folder with --model"
        ) from error
    return model


def _with_its_company(recipe: Recipe) -> tuple[Request, int]:
    """The request as it was painted, and which of its pictures this one is: company changes how sums are rounded."""
    batch = recipe.made_by.get("batch")
    index, of = (batch.get("index"), batch.get("of")) if isinstance(batch, Mapping) else (0, 1)
    if isinstance(index, int) and isinstance(of, int) and 0 <= index < of:
        with contextlib.suppress(ValueError):  # seeds that no company has
            return recipe.request.batch_of(index, of), index
    return recipe.request, 0


def _as_then(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """Device, dtype and threads as they were, where this machine has them."""
    import torch

    threads, device, dtype = (made_by.get(name) for name in ("threads", "device", "dtype"))
    if isinstance(threads, int) and 1 <= threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return {"device": device if here.get(str(device)) else None, "dtype": dtype if isinstance(dtype, str) else None}


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], of: str = "") -> Iterator[str]:
    """A line for everything that decides pixels and is not as it was."""
    for name in dict.fromkeys([*then, *now]):
        before, after = then.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{name} of the " if name == "weights" else f"{name} ")
        elif before != after:
            yield f"{of}{name}: {before} then, {after} now"


def _furthest(then: Image.Image, now: Image.Image) -> int:
    """The largest difference of two pictures in any channel."""
    if then.size != now.size:
        return 255
    return max(high for _, high in ImageChops.difference(then, now).getextrema())  # type: ignore[misc]
