"""`kandinsky22 show`: the request that a picture carries, and what made it. Imports no torch."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kandinsky22.cli.options import Parser
from kandinsky22.cli.terminal import printable
from kandinsky22.imaging.images import Recipe, read_recipe
from kandinsky22.request import Sampling, Text
from kandinsky22.request.parts import EVERYWHERE, said


def main(arguments: Sequence[str]) -> None:
    """Print the request stored in a picture."""
    parser = Parser(
        "kandinsky22 show", "Print the request that a picture carries.", usage="kandinsky22 show [--json] FILE"
    )
    parser.option("json", action="store_true", help="as JSON, for programs")
    options, words, _ = parser.parse(arguments)
    recipe = read_recipe(one_file(words, "show"))
    if "json" in options:
        print(json.dumps({"request": json.loads(recipe.request.to_json()), "made_by": recipe.made_by}, indent=2))
        return
    for name, value in described(recipe).items():
        print(f"{name + ':':10} {printable(value)}")


def one_file(words: Sequence[str], command: str) -> str:
    """The one file that a command was given. Raises `ValueError`."""
    if len(words) != 1:
        raise ValueError(f"`{command}` takes one picture, got {len(words)}; such as kandinsky22 {command} picture.png")
    return words[0]


def described(recipe: Recipe) -> dict[str, str]:
    """A recipe in words."""
    request = recipe.request
    lines = {"prompt" if isinstance(request.condition, Text) else "of": said(request.condition)}
    if request.negative is not None:
        lines["without"] = said(request.negative)
    lines |= {place: said(picture) for place, picture in request.pictures.items() if not place.startswith("condition")}
    lines |= {
        "size": f"{request.height}x{request.width}",
        "seed": str(request.seed),
        "prior": _sampling(request.prior),
        "decoder": _sampling(request.decoder),
        "model": request.model,
    }
    return lines | {name: _value(value) for name, value in recipe.made_by.items()}


def _sampling(sampling: Sampling) -> str:
    said = f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance_scale}"
    if sampling.guidance_interval not in (None, EVERYWHERE):
        said += " from {:g} to {:g}".format(*sampling.guidance_interval)
    return said if sampling.reuse in (None, 1) else f"{said}, deeper levels at every {sampling.reuse} calls"


def _value(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
