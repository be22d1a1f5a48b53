"""`kandinsky22 show`: prints the request stored in a picture, and the versions and device that made it.

Imports no torch.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kandinsky22.cli.options import Parser
from kandinsky22.console import echo
from kandinsky22.imaging.images import Recipe, read_recipe
from kandinsky22.request import LoRA, Mask, Sampling, Text
from kandinsky22.request.parts import EVERYWHERE, describe, parts


def main(arguments: Sequence[str]) -> None:
    """Print the request stored in a picture."""
    parser = Parser(
        "kandinsky22 show", "Print the request stored in a picture.", usage="kandinsky22 show [--json] FILE"
    )
    parser.option("json", action="store_true", help="as JSON, for programs")
    options, words, _ = parser.parse(arguments)
    recipe = read_recipe(one_file(words, "show"))
    if "json" in options:
        text = json.dumps(json.loads(recipe.to_json()), indent=2).replace(
            "\x7f", "\\u007f"
        )  # the one control character that JSON keeps
        for line in text.splitlines():
            echo(line)
        return
    for name, value in summary(recipe).items():
        echo(f"{name + ':':15} {value}")


def one_file(words: Sequence[str], command: str) -> str:
    """The only file among the arguments of a command. Raises `ValueError` unless there is exactly one."""
    if len(words) != 1:
        raise ValueError(f"`{command}` takes one picture, got {len(words)}; write kandinsky22 {command} picture.png")
    return words[0]


def summary(recipe: Recipe) -> dict[str, str]:
    """The values of a recipe as text, by label."""
    request = recipe.request
    lines = {"prompt" if isinstance(request.condition, Text) else "of": describe(request.condition)}
    if recipe.layout.get("kind") in ("strip", "film"):
        lines["of"] = " to ".join(map(describe, parts(request.condition)))
    if recipe.layout:
        lines["layout"] = ", ".join(str(v) if k == "kind" else f"{k} {v}" for k, v in recipe.layout.items())
    if request.negative is not None:
        lines["without"] = describe(request.negative)
    if isinstance(request.condition, Text) and request.condition.strength is not None:
        lines["prior strength"] = f"{request.condition.strength:g}"
    lines |= {path: describe(picture) for path, picture in request.pictures.items() if not path.startswith("condition")}
    if request.start is not None:
        lines["strength"] = f"{request.start.strength:g}"
    if request.mask is not None:
        lines |= _mask(request.mask)
    more = "" if request.num_images == 1 else f", and the {request.num_images - 1} after it"
    lines |= {"size": f"{request.width}x{request.height}", "seed": f"{request.seed}{more}"}
    if request.prior_seed is not None:
        lines["prior seed"] = str(request.prior_seed)
    if request.variation_seed is not None:
        lines["variation"] = f"{request.variation_strength:g} towards the noise of seed {request.variation_seed}"
    if request.loras:
        lines["loras"] = ", ".join(map(_lora, request.loras))
    lines |= {"prior": _sampling(request.prior), "decoder": _sampling(request.decoder), "model": request.model}
    return lines | {name: _value(value) for name, value in recipe.made_by.items()}


def _mask(mask: Mask) -> dict[str, str]:
    """What is repainted, and how it is put back."""
    lines = {} if mask.area is None else {"repainted": f"where the mask is {mask.repaint}"}
    if any(mask.pad):
        sides = zip(("top", "right", "bottom", "left"), mask.pad, strict=True)
        lines["extended"] = ", ".join(f"{side} {count}" for side, count in sides if count)
    lines["feather"] = f"{mask.feather} pixels"
    lines["paste back"] = "yes" if mask.paste_back else "no"
    return lines if mask.crop is None else lines | {"crop": "yes" if mask.crop else "no"}


def _sampling(sampling: Sampling) -> str:
    text = f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance_scale}"
    if sampling.guidance_interval not in (None, EVERYWHERE):
        text += " from {:g} to {:g}".format(*sampling.guidance_interval)
    return text if sampling.reuse in (None, 1) else f"{text}, deeper levels at every {sampling.reuse} calls"


def _lora(lora: LoRA) -> str:
    prior = "" if lora.prior_scale is None else f", {lora.prior_scale:g} for the prior"
    return f"{lora.name} ({lora.sha256[:8]}) at {lora.scale:g}{prior}"


def _value(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
