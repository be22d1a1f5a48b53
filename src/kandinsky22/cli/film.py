"""`kandinsky22 strip` and `film`: an interpolation between texts, pictures and embeddings, as pictures."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.cli import paint
from kandinsky22.cli.embed import embed_parts, parse_parts
from kandinsky22.cli.options import Parser, add_parameters, whole_number
from kandinsky22.console import echo
from kandinsky22.files import expand, numbered, write_first_free
from kandinsky22.request import Request, Text, interpolation, limits
from kandinsky22.request.events import Failed, Progress, Result
from kandinsky22.request.tasks import interpolate

if TYPE_CHECKING:
    from PIL import Image

    from kandinsky22.backends.remote import Remote
    from kandinsky22.engine.kandinsky import Kandinsky

FPS = 12.0
NOT_OPTIONS = ("images_and_prompts", "weights", "num_images", "variation_seed", "variation_strength", "prior_seed")


def strip(arguments: Sequence[str]) -> None:
    """Save the frames of an interpolation side by side in one picture."""
    from kandinsky22.cli.output import save_new_png
    from kandinsky22.imaging import images

    options, frames, output = _paint_frames(arguments, "strip", default_frames=7, suffix=".png")
    save = images.save_png if "output" in options else save_new_png
    echo(save(images.strip(frames), output))


def film(arguments: Sequence[str]) -> None:
    """Save the frames of an interpolation as a film."""
    from kandinsky22.imaging import images

    options, frames, output = _paint_frames(arguments, "film", default_frames=24, suffix=".gif")
    save = partial(images.save_film, frames, fps=options.get("fps", FPS), loop=options.get("loop", False))
    echo(save(output) if "output" in options else write_first_free(numbered(output), partial(save, exclusive=True)))


def _paint_frames(
    arguments: Sequence[str], name: str, *, default_frames: int, suffix: str
) -> tuple[dict[str, Any], "list[Image.Image]", Path]:
    """The parsed options, the painted frames, and the path of the file to write."""
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
    parser.option("output", short="-o", metavar="FILE", help=f"the file to write (default: out/{name}{suffix})")
    options, words, _ = parser.parse(arguments)
    options.setdefault("seed", secrets.randbelow(2**32))
    output = expand(options.get("output", f"{paint.OUTPUT}/{name}{suffix}"))
    interpolation_options = {key: options[key] for key in ("loop", "path", "noise") if key in options}
    parts, template = parse_parts(words, options, at_least=2)
    count = options.get("frames", default_frames)
    _check_output(name, output, options.get("fps", FPS), count)
    model = paint.load(template.model, options, template)
    size = model.resolve(replace(template, condition=Text("")))
    most = limits.MAX_PIXELS if name == "strip" else limits.MAX_FRAME_PIXELS
    limits.check_count(f"the pixels of a {name}", count * (size.height or 0) * (size.width or 0), most)
    keyframes = embed_parts(parts, template, model)
    requests = interpolation.requests(keyframes, count, template, **interpolation_options)
    return options, _run_requests(model, requests, quiet=options.get("quiet", False)), output


def _check_output(name: str, output: Path, fps: float, frames: int) -> None:
    """Raises `ValueError` before the first step for a number of frames or a file that is not possible."""
    from kandinsky22.cli.output import Destination, check_writable
    from kandinsky22.imaging import images

    if frames < 2:
        raise ValueError(f"a {name} needs at least two frames, got {frames}")
    limits.check_count("frames", frames, limits.MAX_FRAMES)
    if name == "film":
        images.check_film(output, fps)
    elif output.suffix.lower() != ".png":
        raise ValueError(f"a strip is written as PNG, got {output.name}; name it {output.with_suffix('.png').name}")
    check_writable(Destination(output.parent), 0)


def _run_requests(model: "Kandinsky | Remote", requests: Sequence[Request], *, quiet: bool) -> "list[Image.Image]":
    """The pictures of all requests, painted in batches, with a progress bar on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    images: dict[int, Image.Image] = {}
    with Bar(console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("painting", total=len(requests))
        for key, event in model.stream_many(dict(enumerate(requests))):
            if isinstance(event, Progress) and event.stage == "decoder":
                bar.advance(task, 1 / event.n)
            elif isinstance(event, Failed):
                raise event.exception()
            elif isinstance(event, Result):
                images[key] = event.pictures[0].image
    return [images[key] for key in range(len(requests))]
