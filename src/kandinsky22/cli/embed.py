"""`kandinsky22 embed` and `mix`: image embeddings of texts and pictures, saved as files and blended."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.cli import paint
from kandinsky22.cli.options import Parser, add_parameters, request_of
from kandinsky22.console import echo
from kandinsky22.files import expand, numbered, write_first_free
from kandinsky22.request import Embedding, Part, Request, Text
from kandinsky22.request import embedding as embeddings
from kandinsky22.request.task_schema import parse_part
from kandinsky22.request.tasks import interpolate

if TYPE_CHECKING:
    from kandinsky22.backends.remote import Remote
    from kandinsky22.engine.kandinsky import Kandinsky

PRIOR_OPTIONS = (
    "negative_prompt",
    "loras",
    "seed",
    "prior_num_inference_steps",
    "prior_guidance_scale",
    "prior_sampler",
    "model",
)
SUFFIX = ".safetensors"
MIX_EXAMPLE = """example:
  kandinsky22 mix star.safetensors circle.safetensors --weights 1,-0.5 -o less-round.safetensors"""


def embed(arguments: Sequence[str]) -> None:
    """Save the embedding of each text or picture."""
    parser = Parser(
        "kandinsky22 embed",
        "Save the image embeddings of texts and pictures, to blend them and to paint from them.",
        usage='kandinsky22 embed [options] "TEXT"|FILE ...',
    )
    add_parameters(parser, interpolate, PRIOR_OPTIONS)
    parser.option("output", short="-o", metavar="PLACE", help=f"a folder, or a file ending in {SUFFIX} (default: out)")
    parser.add_edge("device", "dtype", "placement", "server")
    options, words, _ = parser.parse(arguments)
    embeds = _embed_words(words, options, at_least=1)
    output = expand(options.get("output", paint.OUTPUT))
    if output.suffix == SUFFIX and len(words) > 1:
        raise ValueError(f"--output names one file and there are {len(words)} embeddings; name a folder")
    for word, embedding in zip(words, embeds, strict=True):
        echo(
            embedding.save(output)
            if output.suffix == SUFFIX
            else _save_new(embedding, output / f"{_stem(word)}{SUFFIX}")
        )


def mix(arguments: Sequence[str]) -> None:
    """Save a blend of texts, pictures and embeddings."""
    parser = Parser(
        "kandinsky22 mix",
        "Blend texts, pictures and saved embeddings into one embedding.",
        usage='kandinsky22 mix [options] "TEXT"|FILE ...',
        epilog=MIX_EXAMPLE,
    )
    add_parameters(parser, interpolate, ("weights", *PRIOR_OPTIONS))
    parser.option("slerp", type=float, metavar="T", help="interpolate spherically between two, T from 0 to 1")
    parser.option("length", type=float, metavar="X", help="scale the blend to this length")
    parser.option("output", short="-o", metavar="FILE", help=f"a file ending in {SUFFIX} (default: out/mix{SUFFIX})")
    parser.add_edge("device", "dtype", "placement", "server")
    options, words, _ = parser.parse(arguments)
    if len(words) < 2:
        raise ValueError(f"a mix takes two texts or files or more, in quotes, got {len(words)}")
    if "slerp" in options and ("weights" in options or len(words) != 2):
        raise ValueError("--slerp takes exactly two embeddings and no --weights")
    if not 0 <= options.get("slerp", 0) <= 1:
        raise ValueError(f"--slerp goes from 0 to 1, got {options['slerp']:g}; use --weights to extrapolate")
    if not options.get("length", 1) > 0:
        raise ValueError(f"--length must be above 0, got {options['length']:g}")
    weights = options.get("weights", [1 / len(words)] * len(words))
    if len(weights) != len(words):
        raise ValueError(f"{len(words)} embeddings need as many weights, got {len(weights)}")
    output = expand(options.get("output", f"{paint.OUTPUT}/mix{SUFFIX}"))
    if output.suffix != SUFFIX:
        raise ValueError(f"the file of an embedding ends in {SUFFIX}, got {output.name}")
    embeds = _embed_words(words, options, at_least=2)
    blend = embeds[0].slerp(embeds[1], options["slerp"]) if "slerp" in options else embeddings.mix(embeds, weights)
    if "length" in options:
        blend = blend.normalised(options["length"])
    made_by: dict[str, Any] = {"mix": words, **{key: options[key] for key in ("slerp", "length") if key in options}}
    if "slerp" not in options:
        made_by["weights"] = weights
    blend = replace(blend, made_by=made_by)
    echo(blend.save(output) if "output" in options else _save_new(blend, output))


def parse_parts(words: Sequence[str], options: dict[str, Any], *, at_least: int) -> tuple[list[Part], Request]:
    """The parts that arguments name, and the request for their blend; a missing seed is drawn into `options`."""
    if len(words) < at_least:
        raise ValueError(f"this command takes {at_least} texts or files or more, in quotes, got {len(words)}")
    options.setdefault("seed", secrets.randbelow(2**32))
    parts = [parse_part(word) for word in words]
    return parts, request_of(interpolate, {"images_and_prompts": parts}, options)


def embed_parts(parts: Sequence[Part], template: Request, model: "Kandinsky | Remote") -> list[Embedding]:
    """The embedding of each part, sampled as `template` says."""
    template = model.resolve(replace(template, condition=Text("")))
    return [p if isinstance(p, Embedding) else model.embedding(replace(template, condition=p)) for p in parts]


def _save_new(embedding: Embedding, path: Path) -> Path:
    """Write to this path, or to one with a number if there is a file."""
    return write_first_free(numbered(path), partial(embedding.save, exclusive=True))


def _embed_words(words: Sequence[str], options: Mapping[str, Any], *, at_least: int) -> list[Embedding]:
    """The embeddings of arguments; a model is loaded only if some are not saved embeddings."""
    parts, template = parse_parts(words, dict(options), at_least=at_least)
    saved = [part for part in parts if isinstance(part, Embedding)]
    if len(saved) == len(parts):
        return saved
    return embed_parts(parts, template, paint.load(template.model, dict(options), template))


def _stem(word: str) -> str:
    """A file name without suffix for the embedding of a text or a file."""
    text = Path(word).stem if Path(word).is_file() else word
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split()[:6])[:40] or "embedding"
