"""`kandinsky22 replay`: paints a picture again from its recipe, and prints whether and why the pixels differ.

A picture may come from a stranger. So its recipe decides only what is computed: it fetches nothing, and of what it
names only the box, a published model in the cache, and pictures beside it by their bare names are looked up.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image, ImageChops

from kandinsky22.checkpoints import catalog, hub
from kandinsky22.checkpoints.dtypes import NETWORK_DTYPES
from kandinsky22.cli import output, paint
from kandinsky22.cli.options import Parser
from kandinsky22.cli.show import one_file
from kandinsky22.cli.terminal import display
from kandinsky22.console import echo
from kandinsky22.engine.requirements import model_parts
from kandinsky22.imaging.images import Recipe, read_recipe
from kandinsky22.request import LoRA, Picture, Request
from kandinsky22.request.lora import find_files
from kandinsky22.request.parts import describe, is_int
from kandinsky22.request.picture_file import SUFFIXES, read_picture

DIFFERENT = 1  # exit status: the pixels differ although the recipe does not explain it


def main(arguments: Sequence[str]) -> int:
    """Paint a picture again, as exactly as this machine can, and compare it with the stored one."""
    usage = "kandinsky22 replay [options] FILE"
    parser = Parser("kandinsky22 replay", "Paint a picture again, with the same pixels.", usage=usage)
    parser.option(
        "model", metavar="FOLDER", help="the model (default: the box or one in the cache, if that painted it)"
    )
    parser.option(
        "picture", metavar="FILE", action="append", help="an input picture of it, if that is not in the folder of FILE"
    )
    parser.option(
        "lora", metavar="FILE", action="append", help="a LoRA of it, if that is not in the folder of FILE or this one"
    )
    parser.add_edge()
    options, words, _ = parser.parse(arguments)
    file = one_file(words, "replay")
    recipe = read_recipe(file)
    if recipe.layout:
        raise ValueError(f"{file} is a {recipe.layout.get('kind')} of several pictures; `show` prints what made it")
    stored = read_picture(Path(file))
    is_exact, stored = stored.format != "JPEG", stored.convert("RGB")
    if stored.size != (recipe.request.width, recipe.request.height):
        raise ValueError(f"{file} has another size than its request, so it was edited since it was painted")
    request, index = _batch_request(recipe)
    server = paint.server_of(options)
    request = replace(request, model=options.get("model") or (request.model if server else _local_model(request)))
    request = request.with_pictures(input_pictures(request, Path(file), options.get("picture", [])))
    if not server:  # which finds them by itself
        given = {lora.sha256: lora.path for lora in map(LoRA.of, options.get("lora", []))}
        loras = (replace(lora, path=given.get(lora.sha256)) for lora in request.loras)
        request = replace(request, loras=find_files(loras, [Path(file).parent, Path()]))
    destination = output.Destination.of(options.get("output", paint.OUTPUT))
    if destination.is_stdout:
        raise ValueError("`replay` prints on standard output how the pictures compare; name a file for --output")
    if not server:  # which has the device and the dtype that it has
        options = _recorded_options(recipe.made_by) | options
    backend = paint.load(request.model, options, request)
    with display(options.get("quiet", False)) as view:
        result = paint.run_request(request, backend, view, destination)
    picture = result.pictures[index]
    difference = _max_difference(stored, picture.image)
    changes = list(_changes(recipe.made_by, picture.made_by))
    echo(output.save_picture(picture, destination))
    for line in changes:
        echo(line)
    same = {0: f"the pixels are those of {file}", 1: f"the pixels are those of {file}, up to rounding"}
    echo(same.get(difference, f"the pixels differ from {file} by up to {difference} of 255"))
    if difference > 1 and not is_exact:
        echo("JPEG itself changes pixels; to compare exactly, keep pictures as PNG or WebP")
    elif difference > 1 and not changes:
        echo("the recipe explains no difference: was the file edited?")
        return DIFFERENT
    return 0


def input_pictures(
    request: Request, file: Path, given: Sequence[str], fix: str = "pass it with --picture FILE"
) -> dict[str, Picture]:
    """The input pictures of a request with pixels, by path in the request.

    They are among the `given` files, or files of the same name and pixels in the folder of `file` or the current
    folder. Raises `ValueError` for one that is in none of these places, with the words `fix`.
    """
    by_hash = {picture.sha256: picture for picture in map(Picture.of, given)}
    pictures = {}
    for path, reference in request.pictures.items():
        for candidate in _namesakes(reference, (file.parent, Path())):
            if reference.sha256 not in by_hash:
                picture = Picture.of(candidate)
                by_hash[picture.sha256] = picture
        if reference.sha256 not in by_hash:
            raise ValueError(f"{describe(reference)} is an input of {file} and not in its folder; {fix}")
        pictures[path] = by_hash[reference.sha256]
    return pictures


def _namesakes(reference: Picture, folders: Iterable[Path]) -> list[Path]:
    """The files with a picture's name in some folders. A name with a path in it, which we never store, has none."""
    name = reference.name or ""
    if not name or name != PureWindowsPath(name).name or Path(name).suffix.lower() not in SUFFIXES:
        return []
    return [folder / name for folder in folders if (folder / name).is_file()]


def _local_model(request: Request) -> str:
    """The model that a recipe names, if it is the box or a published one that is complete on this machine.

    Raises `ValueError` for any other: a recipe holds the name of a folder without its path, and fetches nothing.
    """
    name = request.model
    if name == catalog.BOX:
        return name
    if name in catalog.published():
        parts = model_parts(name, request)
        if not hub.plan_fetch(name, parts).missing:
            return name
        raise ValueError(f"{name} painted the picture and is not on this machine; allow fetching it: --model {name}")
    raise ValueError(f"the picture was painted by a model called {name!r}; pass its folder with --model")


def _batch_request(recipe: Recipe) -> tuple[Request, int]:
    """The request for the batch that a picture was painted in, and its index there.

    The batch size changes how sums are rounded, and so the last bit of a pixel.
    """
    batch = recipe.made_by.get("batch")
    index, of = (batch.get("index"), batch.get("of")) if isinstance(batch, Mapping) else (0, 1)
    if is_int(index) and is_int(of) and 0 <= index < of:
        with contextlib.suppress(ValueError):  # too many, or their seeds would be out of range
            return recipe.request.batch_from(index, of), index
    return recipe.request, 0


def _recorded_options(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The device and dtype of a recipe as options, as far as this machine has them; also sets its number of threads."""
    import torch

    threads, device, dtype = (made_by.get(name) for name in ("threads", "device", "dtype"))
    if is_int(threads) and 1 <= threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return {
        "device": device if available.get(str(device)) else None,
        "dtype": dtype if dtype in NETWORK_DTYPES else None,
    }


def _changes(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A line for each value that influences the pixels and has changed."""
    for name in dict.fromkeys([*then, *now]):
        before, after = then.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changes(before, after, f"{name} of the " if name == "weights" else f"{name} ")
        elif before != after:
            yield f"{prefix}{name}: {before} then, {after} now"


def _max_difference(first: Image.Image, second: Image.Image) -> int:
    """The largest difference of two pictures in any channel, 0 to 255; 255 if their sizes differ."""
    if first.size != second.size:
        return 255
    return max(high for _, high in ImageChops.difference(first, second).getextrema())  # type: ignore[misc]
