"""`kandinsky22 show`: prints the request stored in a picture, and the versions and device that made it.

Imports no torch.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kandinsky22.cli.options import Parser
from kandinsky22.console import echo
from kandinsky22.imaging.images import Recipe, read_recipe
from kandinsky22.request import Sampling, Text
from kandinsky22.request.parts import EVERYWHERE, describe


def main(arguments: Sequence[str]) -> None:
    """Print the request stored in a picture."""
    parser = Parser(
        "kandinsky22 show", "Print the request stored in a picture.", usage="kandinsky22 show [--json] FILE"
    )
    parser.option("json", action="store_true", help="as JSON, for programs")
    options, words, _ = parser.parse(arguments)
    recipe = read_recipe(one_file(words, "show"))
    if "json" in options:
        values = {"request": json.loads(recipe.request.to_json()), "made_by": recipe.made_by}
        text = json.dumps(values, indent=2).replace("\x7f", "\\u007f")  # the one control character that JSON keeps
        for line in text.splitlines():
            echo(line)
        return
    for name, value in summary(recipe).items():
        echo(f"{name + ':':10} {value}")


def one_file(words: Sequence[str], command: str) -> str:
    """The only file among the arguments of a command. Raises `ValueError` unless there is exactly one."""
    if len(words) != 1:
        raise ValueError(f"`{command}` takes one picture, got {len(words)}; write kandinsky22 {command} picture.png")
    return words[0]


def summary(recipe: Recipe) -> dict[str, str]:
    """The values of a recipe as text, by label."""
    request = recipe.request
    lines = {"prompt" if isinstance(request.condition, Text) else "of": describe(request.condition)}
    if request.negative is not None:
        lines["without"] = describe(request.negative)
    lines |= {path: describe(picture) for path, picture in request.pictures.items() if not path.startswith("condition")}
    lines |= {
        "size": f"{request.height}x{request.width}",
        "seed": str(request.seed),
        "prior": _sampling(request.prior),
        "decoder": _sampling(request.decoder),
        "model": request.model,
    }
    return lines | {name: _value(value) for name, value in recipe.made_by.items()}


def _sampling(sampling: Sampling) -> str:
    text = f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance_scale}"
    if sampling.guidance_interval not in (None, EVERYWHERE):
        text += " from {:g} to {:g}".format(*sampling.guidance_interval)
    return text if sampling.reuse in (None, 1) else f"{text}, deeper levels at every {sampling.reuse} calls"


def _value(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
