"""How an evaluation paints: what can be said on its command line, which processes do it, and what becomes of a run."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.checkpoints import catalog, locate
from kandinsky22.cli.options import Parser, add_parameters, request_of
from kandinsky22.cli.standing import needed, told
from kandinsky22.request import Request
from kandinsky22.request.tasks import text2img

if TYPE_CHECKING:
    from kandinsky22.backends.pool import Pool
    from kandinsky22.engine.kandinsky import Kandinsky
    from kandinsky22.evaluation.captions import Captions
    from kandinsky22.evaluation.features import ClipFeatures
    from kandinsky22.evaluation.generate import Standing
    from kandinsky22.evaluation.manifest import Run, Shard

PAINTED_BY = (
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "sampler",
    "prior",
    "prior_num_inference_steps",
    "prior_guidance_scale",
    "prior_sampler",
    "negative_prompt",
    "speed",
    "guidance_interval",
    "reuse",
    "model",
)
SMALL = 100_000_000  # numbers of a U-Net of which every core can have its own


def parser_of(name: str, description: str, needs: str = "", without: Sequence[str] = ()) -> Parser:
    """The options that every evaluation that paints has."""
    usage = f"kandinsky22 evaluate {name} {needs}{' ' if needs else ''}--out FOLDER [options]"
    parser = Parser(f"kandinsky22 evaluate {name}", description, usage=usage)
    parser.option(
        "out", type=Path, metavar="FOLDER", help="where pictures and report go; the same one goes on (needed)"
    )
    parser.option(
        "processes", type=whole_number, metavar="N", help="that paint side by side (default: what fits the model)"
    )
    parser.option("batch", type=whole_number, metavar="N", help="pictures painted together by each (default: 8)")
    parser.option("threads", type=whole_number, metavar="N", help="of each process (default: the cores are shared out)")
    parser.option("retry", action="store_true", help="try captions again that failed before")
    add_parameters(parser, text2img, [parameter for parameter in PAINTED_BY if parameter not in without])
    parser.add_edge("device", "dtype")
    return parser


def options_of(parser: Parser, arguments: Sequence[str], needed: Sequence[str] = ()) -> dict[str, Any]:
    """What was typed. Raises `ValueError` for words, and where `--out` or another that is needed is missing."""
    options, words, _ = parser.parse(arguments)
    if words:
        raise ValueError(f"{parser.prog} takes options only, got {words[0]!r}")
    for name in ("out", *needed):
        if name not in options:
            raise ValueError(f"{parser.prog} needs --{name.replace('_', '-')}; see {parser.prog} --help")
    return options


def template_of(options: Mapping[str, Any]) -> Request:
    """How every caption is painted."""
    return request_of(text2img, {"prompt": ""}, {name: value for name, value in options.items() if name != "seed"})


def model_of(options: Mapping[str, Any]) -> "Kandinsky":
    """The model, of which nothing is read yet; a published one is fetched here, before there are processes."""
    from kandinsky22.engine.kandinsky import Kandinsky

    model = options.get("model", catalog.BOX)
    return Kandinsky.load(model, device=options.get("device"), dtype=options.get("dtype"), request=template_of(options))


def own_clip(options: Mapping[str, Any]) -> "ClipFeatures":
    """The model's own CLIP."""
    from kandinsky22.evaluation.features import ClipFeatures

    model = model_of(options)
    return ClipFeatures.of_model(model.stored.prior, model.device)


def place_of(options: Mapping[str, Any]) -> str:
    """The device."""
    from kandinsky22.engine.device import device_of

    return str(device_of(options.get("device")))


def pool(options: Mapping[str, Any]) -> "Pool":
    """This machine's processes; of a small model, as many as it has cores."""
    from kandinsky22.backends.pool import Pool, cores

    model = model_of(options)
    small = model.device.type == "cpu" and model.stored.first.unet.elements < SMALL
    processes = options.get("processes", cores() if small else 1)
    return Pool.of(
        options.get("model", catalog.BOX),
        processes=processes,
        batch=options.get("batch", 8),
        device=options.get("device"),
        dtype=options.get("dtype"),
        threads=options.get("threads"),
        request=template_of(options),
    )


def at_hand(options: Mapping[str, Any]) -> "Kandinsky | None":
    """The model, if it is whole on this machine; nothing is fetched."""
    import torch

    from kandinsky22.engine.kandinsky import Kandinsky

    model = options.get("model", catalog.BOX)
    try:
        folders = locate.part_folders(model)
        if catalog.is_remote(model):
            return Kandinsky(folders, name=model, device=torch.device("cpu"))
        return model_of(options)
    except ValueError:
        return None


def noted(options: Mapping[str, Any], *, linear: bool = False) -> Callable[[], dict[str, Any]]:
    """What a run is begun with, for its readers: the command and its weights' files; `linear`: with the linear prior's."""

    @cache
    def found() -> dict[str, Any]:
        from kandinsky22.evaluation import protocol

        hashes = model_of(options).stored.sha256(catalog.DECODER, linear=linear)
        return {"command": protocol.command(), "weights_sha256": hashes}

    return found


def painted(options: Mapping[str, Any], captions: "Captions", shard: "Shard | None" = None, **how: Any) -> "Run":
    """The run of captions, its shard painted; what it will take is said first, the time as soon as a pack was painted.

    how: `least` as `generate.generate` takes it, `check` and `seed` as `generate.begin` does.
    """
    from kandinsky22.evaluation import generate
    from kandinsky22.evaluation.manifest import WHOLE

    shard, retry, least = shard or WHOLE, options.get("retry", False), how.pop("least", 1)
    with pool(options) as painter:
        request = template_of(options)
        about = noted(options, linear=request.prior.linear)
        run = generate.begin(painter, options["out"], captions, request, noted=about, **how)

        def painting(packs: int | None = None) -> "Iterator[tuple[str, Standing]]":
            for standing in generate.generate(painter, run, shard=shard, retry=retry, packs=packs, least=least):
                yield run.folder.name, standing

        needs = generate.estimate(run, shard, processes=painter.processes, retry=retry)
        if needs.seconds is None:
            print(f"{needed(needs)}; the first pack is timed", flush=True)
            told(painting(packs=1))
            needs = generate.estimate(run, shard, processes=painter.processes, retry=retry)
        print(needed(needs), flush=True)
        told(painting())
    return run


def whole_number(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)
