"""`kandinsky22 embed`, `mix`, `strip` and `film`: embeddings as files, and the way from one to the next as pictures."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.cli import paint
from kandinsky22.cli.options import Parser, add_parameters, request_of
from kandinsky22.request import Embedding, Part, Request, Text, interpolation
from kandinsky22.request.embedding import mix
from kandinsky22.request.events import Progress, Result
from kandinsky22.request.task_schema import part
from kandinsky22.request.tasks import interpolate

if TYPE_CHECKING:
    from PIL import Image

    from kandinsky22.engine.kandinsky import Kandinsky

OF_THE_PRIOR = (
    "negative_prompt",
    "seed",
    "prior_num_inference_steps",
    "prior_guidance_scale",
    "prior_sampler",
    "model",
)
FPS = 12.0
COMPANY = 8  # frames that are painted together
ENDING = ".safetensors"


def embed(arguments: Sequence[str]) -> None:
    """Save the embedding of each text or picture."""
    parser = Parser(
        "kandinsky22 embed",
        "Save the image embedding of texts and pictures, to mix and to paint from.",
        usage='kandinsky22 embed [options] "TEXT"|FILE ...',
    )
    add_parameters(parser, interpolate, OF_THE_PRIOR)
    parser.option("output", short="-o", metavar="PLACE", help=f"folder, or a file ending in {ENDING} (default: out)")
    parser.add_edge("device", "dtype", "placement")
    options, words, _ = parser.parse(arguments)
    stops = _embeddings(words, options, at_least=1)
    place = Path(options.get("output", paint.OUTPUT)).expanduser()
    if place.suffix == ENDING and len(words) > 1:
        raise ValueError(f"--output names one file and there are {len(words)} embeddings; name a folder")
    for word, embedding in zip(words, stops, strict=True):
        name = f"{_stem(word)}{ENDING}"
        print(embedding.save(place if place.suffix == ENDING else _free(place / name)))


def blend(arguments: Sequence[str]) -> None:
    """Save a blend of texts, pictures and embeddings."""
    parser = Parser(
        "kandinsky22 mix",
        "Blend texts, pictures and saved embeddings into one embedding.",
        usage='kandinsky22 mix [options] "TEXT"|FILE ...',
        epilog="example:\n  kandinsky22 mix star.safetensors circle.safetensors --weights 1,-0.5 -o less-round.safetensors",
    )
    add_parameters(parser, interpolate, ("weights", *OF_THE_PRIOR))
    parser.option("slerp", type=float, metavar="T", help="go this part of the way from the first to the second, 0 to 1")
    parser.option("length", type=float, metavar="X", help="bring the blend to this length")
    parser.option("output", short="-o", metavar="FILE", help=f"a file ending in {ENDING} (default: out/mix{ENDING})")
    parser.add_edge("device", "dtype", "placement")
    options, words, _ = parser.parse(arguments)
    if len(words) < 2:
        raise ValueError(f"a mix is of two texts or files or more, in quotes, got {len(words)}")
    if "slerp" in options and ("weights" in options or len(words) != 2):
        raise ValueError("--slerp goes between two embeddings, and takes no --weights")
    if not 0 <= options.get("slerp", 0) <= 1:
        raise ValueError(f"--slerp goes from 0 to 1, got {options['slerp']:g}; weights go beyond")
    if not options.get("length", 1) > 0:
        raise ValueError(f"--length must be above 0, got {options['length']:g}")
    weights = options.get("weights", [1 / len(words)] * len(words))
    if len(weights) != len(words):
        raise ValueError(f"{len(words)} embeddings need as many weights, got {len(weights)}")
    place = Path(options.get("output", _free(Path(paint.OUTPUT) / f"mix{ENDING}"))).expanduser()
    if place.suffix != ENDING:
        raise ValueError(f"an embedding's file ends in {ENDING}, got {place.name}")
    stops = _embeddings(words, options, at_least=2)
    made = stops[0].slerp(stops[1], options["slerp"]) if "slerp" in options else mix(stops, weights)
    if "length" in options:
        made = made.normalised(options["length"])
    how: dict[str, Any] = {key: options[key] for key in ("slerp", "length") if key in options}
    said: dict[str, Any] = {"mix": words, **how}
    if "slerp" not in options:
        said["weights"] = weights
    print(replace(made, made_by=said).save(place))


def strip(arguments: Sequence[str]) -> None:
    """A row of pictures on the way from one to the next."""
    from kandinsky22.imaging import images

    _, painted, place = _journey(arguments, "strip", frames=7, ending=".png")
    print(images.save_png(images.strip(painted), place))


def film(arguments: Sequence[str]) -> None:
    """The way from one picture to the next, as a film."""
    from kandinsky22.imaging import images

    options, painted, place = _journey(arguments, "film", frames=24, ending=".gif")
    print(images.save_film(painted, place, fps=options.get("fps", FPS), loop=options.get("loop", False)))


def _journey(
    arguments: Sequence[str], name: str, *, frames: int, ending: str
) -> tuple[dict[str, Any], "list[Image.Image]", Path]:
    """What was typed, the frames, and where they go."""
    parser = Parser(
        f"kandinsky22 {name}",
        "Paint the way between texts, pictures and saved embeddings.",
        usage=f'kandinsky22 {name} [options] "TEXT"|FILE "TEXT"|FILE ...',
        epilog=f'example:\n  kandinsky22 {name} "a red circle" "a blue star" --seed 7',
    )
    parser.option("frames", type=int, metavar="N", help=f"pictures on the way, the ends included (default: {frames})")
    parser.option("noise", choices=("held", "turned"), help="held, or turned to the next seed's (default: held)")
    parser.option("path", choices=("slerp", "line"), help="along the sphere or straight (default: slerp)")
    parser.option("loop", action="store_true", help="back to the first, without a seam")
    if name == "film":
        parser.option("fps", type=float, metavar="X", help="pictures a second (default: 12)")
    left_out = ("images_and_prompts", "weights", "num_images", "variation_seed", "variation_strength", "prior_seed")
    add_parameters(parser, interpolate, leave_out=left_out)
    parser.add_edge("device", "dtype", "placement", "quiet")
    parser.option("output", short="-o", metavar="FILE", help=f"where to (default: out/{name}{ending})")
    options, words, _ = parser.parse(arguments)
    options.setdefault("seed", secrets.randbelow(2**32))
    place = Path(options.get("output", _free(Path(paint.OUTPUT) / f"{name}{ending}"))).expanduser()
    how = {key: options[key] for key in ("loop", "path", "noise") if key in options}
    parts, like = _asked(words, options, at_least=2)
    count = options.get("frames", frames)
    _check_place(name, place, options.get("fps", FPS), count)
    model = paint.load(like.model, options, like)
    requests = interpolation.requests(_of(parts, like, model), count, like, **how)
    return options, _painted(model, requests, quiet=options.get("quiet", False)), place


def _check_place(name: str, place: Path, fps: float, frames: int) -> None:
    """Raises `ValueError` for what could not be painted or written, before anything is."""
    from kandinsky22.cli.files import Place, check_writable
    from kandinsky22.imaging import images

    if frames < 2:
        raise ValueError(f"a {name} has two frames or more, got {frames}")
    if name == "film":
        images.check_film(place, fps)
    elif place.suffix.lower() != ".png":
        raise ValueError(f"a strip is written as PNG, got {place.name}; name it {place.with_suffix('.png').name}")
    check_writable(Place(place.parent), 0)


def _painted(model: "Kandinsky", requests: Sequence[Request], *, quiet: bool) -> "list[Image.Image]":
    """All frames, some at a time, with a bar on stderr where somebody looks."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    images: dict[int, Image.Image] = {}
    with Bar(console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("painting", total=len(requests))
        for begin in range(0, len(requests), COMPANY):
            company = dict(enumerate(requests[begin : begin + COMPANY], start=begin))
            for key, event in model.stream_many(company):
                if isinstance(event, Progress):
                    bar.advance(task, 1 / event.n)
                if isinstance(event, Result):
                    images[key] = event.pictures[0].image
    return [images[key] for key in range(len(requests))]


def _embeddings(words: Sequence[str], options: Mapping[str, Any], *, at_least: int) -> list[Embedding]:
    parts, like = _asked(words, dict(options), at_least=at_least)
    if all(isinstance(stop, Embedding) for stop in parts):  # no model is needed
        return [stop for stop in parts if isinstance(stop, Embedding)]
    return _of(parts, like, paint.load(like.model, dict(options), like))


def _asked(words: Sequence[str], options: dict[str, Any], *, at_least: int) -> tuple[list[Part], Request]:
    """The parts that were named, and the request for their blend."""
    if len(words) < at_least:
        raise ValueError(f"it takes {at_least} texts or files or more, in quotes, got {len(words)}")
    options.setdefault("seed", secrets.randbelow(2**32))
    parts = [part(word) for word in words]
    return parts, request_of(interpolate, {"images_and_prompts": parts}, options)


def _of(parts: Sequence[Part], like: Request, model: "Kandinsky") -> list[Embedding]:
    """The embedding of each part."""
    like = model.resolved(replace(like, condition=Text("")))
    return [p if isinstance(p, Embedding) else model.embedding(replace(like, condition=p)) for p in parts]


def _stem(word: str) -> str:
    """A file's name for a text or a file."""
    said = Path(word).stem if Path(word).is_file() else word
    return "-".join("".join(c if c.isalnum() else " " for c in said.lower()).split()[:6])[:40] or "embedding"


def _free(path: Path) -> Path:
    """The path, or the next that nothing is at."""
    numbered = (path.with_stem(f"{path.stem}-{k}") for k in range(2, 10_000))
    return path if not path.exists() else next(other for other in numbered if not other.exists())
