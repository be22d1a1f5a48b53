"""`kandinsky22 strip` and `film`: an interpolation between texts, pictures and embeddings, as pictures."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kandinsky22.cli import large_work, paint
from kandinsky22.cli.embed import embed_parts, parse_parts
from kandinsky22.cli.options import YES_HELP, Parser, add_parameters, whole_number
from kandinsky22.cli.terminal import Steps
from kandinsky22.console import echo
from kandinsky22.files import expand, numbered, write_first_free
from kandinsky22.request import Request, Text, interpolation, limits
from kandinsky22.request.events import Failed, Progress, Result
from kandinsky22.request.parts import describe
from kandinsky22.request.tasks import interpolate

if TYPE_CHECKING:
    from PIL import Image

    from kandinsky22.backends.remote import Remote
    from kandinsky22.engine.kandinsky import Kandinsky

FPS = 12.0
NOT_OPTIONS = ("images_and_prompts", "weights", "num_images", "variation_seed", "variation_strength", "prior_seed")


class Frames(NamedTuple):
    """Painted frames. texts: what the file says of them; output: the file; is_named: whether by --output."""

    images: "list[Image.Image]"
    texts: Mapping[str, str]
    output: Path
    is_named: bool


def strip(arguments: Sequence[str]) -> None:
    """Save the frames of an interpolation side by side in one picture."""
    from kandinsky22.cli.output import save_new_image
    from kandinsky22.imaging import images

    frames, _ = _paint_frames(arguments, "strip", default_frames=7, suffix=".png")
    save = images.save_image if frames.is_named else save_new_image
    echo(save(images.strip(frames.images), frames.output, frames.texts))


def film(arguments: Sequence[str]) -> None:
    """Save the frames of an interpolation as a film."""
    from kandinsky22.imaging import images

    frames, options = _paint_frames(arguments, "film", default_frames=24, suffix=".gif")
    fps, loop = options.get("fps", FPS), options.get("loop", False)
    save = partial(images.save_film, frames.images, fps=fps, loop=loop, texts=frames.texts)
    echo(
        save(frames.output)
        if frames.is_named
        else write_first_free(numbered(frames.output), partial(save, exclusive=True))
    )


def _paint_frames(
    arguments: Sequence[str], name: str, *, default_frames: int, suffix: str
) -> tuple[Frames, dict[str, Any]]:
    """The painted frames, and the parsed options."""
    parser = _parser(name, default_frames, suffix)
    options, words, _ = parser.parse(arguments)
    options.setdefault("seed", secrets.randbelow(2**32))
    output = expand(options.get("output", f"{paint.OUTPUT}/{name}{suffix}"))
    interpolation_options: dict[str, Any] = {key: options[key] for key in ("loop", "path", "noise") if key in options}
    parts, template = parse_parts(words, options, at_least=2)
    count = options.get("frames", default_frames)
    _check_output(name, output, options.get("fps", FPS), count)
    with Steps(quiet=options.get("quiet", False)) as steps:
        steps.print("loading the model")
        model = paint.load(template.model, options, template)
        resolved = model.resolve(replace(template, condition=Text("")))
        height, width = resolved.height or 0, resolved.width or 0
        most = limits.MAX_PIXELS if name == "strip" else limits.MAX_FRAME_PIXELS
        limits.check_count(f"the pixels of a {name}", count * height * width, most)
        if not paint.server_of(options):  # which has limits of its own
            large_work.confirm(model, resolved, frames=count, yes="yes" in options)
        way = " to ".join(f'"{describe(part)}"' for part in parts)
        steps.print(f"painting {count} frames from {way}, {width}x{height}, seed {resolved.seed}")
        requests = interpolation.requests(embed_parts(parts, template, model), count, template, **interpolation_options)
        images = _paint(model, requests, steps)
    request = replace(resolved, condition=template.condition)
    texts = _texts(model, request, {"kind": name, "frames": count, **interpolation_options})
    return Frames(images, texts, output, "output" in options), options


def _parser(name: str, default_frames: int, suffix: str) -> Parser:
    parser = Parser(
        f"kandinsky22 {name}",
        "Paint an interpolation between texts, pictures and saved embeddings.",
        usage=f'kandinsky22 {name} [options] "TEXT"|FILE "TEXT"|FILE ...',
        epilog=f'example:\n  kandinsky22 {name} "a red circle" "a blue star" --seed 7',
    )
    parser.option(
        "frames",
        type=whole_number,
        metavar="N",
        help=f"pictures, both ends included (default: {default_frames})",
    )
    parser.option(
        "noise",
        choices=("fixed", "rotating"),
        help="the same noise for all frames, or rotated towards that of the next seed (default: fixed)",
    )
    parser.option("path", choices=("slerp", "line"), help="spherical or linear interpolation (default: slerp)")
    parser.option("loop", action="store_true", help="return to the first, for playing in a loop")
    if name == "film":
        parser.option("fps", type=float, metavar="X", help=f"pictures a second (default: {FPS:g})")
    add_parameters(parser, interpolate, leave_out=NOT_OPTIONS)
    parser.add_edge("device", "dtype", "placement", "server", "quiet")
    parser.option("yes", action="store_true", help=YES_HELP)
    parser.option("output", short="-o", metavar="FILE", help=f"the file to write (default: out/{name}{suffix})")
    return parser


def _check_output(name: str, output: Path, fps: float, frames: int) -> None:
    """Raises `ValueError` before the first step for a number of frames or a file that is not possible."""
    from kandinsky22.cli.output import Destination, check_writable
    from kandinsky22.imaging import images

    if frames < 2:
        raise ValueError(f"a {name} needs at least two frames, got {frames}")
    limits.check_count("frames", frames, limits.MAX_FRAMES)
    if name == "film":
        images.check_film(output, fps)
    else:
        images.check_picture(output)
    check_writable(Destination(output.parent), 0)


def _paint(model: "Kandinsky | Remote", requests: Sequence[Request], steps: Steps) -> "list[Image.Image]":
    """The pictures of all requests, painted in batches."""
    images: dict[int, Image.Image] = {}
    done = [0.0] * len(requests)
    for key, event in model.stream_many(dict(enumerate(requests))):
        if isinstance(event, Progress) and event.stage == "decoder":
            done[key] = event.i / event.n
            steps.show("frames", sum(done), len(requests))
        elif isinstance(event, Failed):
            raise event.exception()
        elif isinstance(event, Result):
            images[key] = event.pictures[0].image
    return [images[key] for key in range(len(requests))]


def _texts(model: "Kandinsky | Remote", request: Request, layout: Mapping[str, Any]) -> dict[str, str]:
    """What the file of a strip or film says: the request for its parts, and how its frames follow from them."""
    from kandinsky22.imaging.file_texts import RECIPE
    from kandinsky22.imaging.images import Recipe

    return {RECIPE: Recipe(request, model.describe(request), layout).to_json()}
