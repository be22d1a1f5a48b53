"""What all evaluations that paint share: options, the model, the processes that paint, and a run of captions."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.backends.run_folder import UNSHARDED, Shard
from kandinsky22.checkpoints import catalog, locate
from kandinsky22.cli.evaluation_progress import describe_estimate, show_progress
from kandinsky22.cli.options import Parser, add_parameters, request_of
from kandinsky22.console import echo
from kandinsky22.request import Request
from kandinsky22.request.tasks import text2img

if TYPE_CHECKING:
    from types import ModuleType

    from kandinsky22.backends.run_painting import RunProgress
    from kandinsky22.backends.work_units import UnitPainter
    from kandinsky22.engine.kandinsky import Kandinsky
    from kandinsky22.evaluation.captions import Captions
    from kandinsky22.evaluation.features import ClipFeatures
    from kandinsky22.evaluation.manifest import Run

PAINT_OPTIONS = (
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
BATCH = 8  # requests of a work unit
SMALL = 100_000_000  # parameters of a U-Net, below which each core runs a model of its own


def parser_of(name: str, description: str, needs: str = "", without: Sequence[str] = ()) -> Parser:
    """A parser with the options that all evaluations that paint have."""
    usage = f"kandinsky22 evaluate {name} {needs}{' ' if needs else ''}--out FOLDER [options]"
    parser = Parser(f"kandinsky22 evaluate {name}", description, usage=usage)
    parser.option(
        "out", type=Path, metavar="FOLDER", help="folder for pictures and report; an existing one is resumed (required)"
    )
    add_paint_options(parser, "captions", without)
    return parser


def add_paint_options(parser: Parser, items: str, without: Sequence[str] = ()) -> None:
    """Add options for the model, the processes that paint, and the pictures; items: what is painted, for the help."""
    parser.option(
        "processes",
        type=whole_number,
        metavar="N",
        help="processes that paint in parallel (default: what fits the model)",
    )
    parser.option(
        "batch", type=whole_number, metavar="N", help=f"{items} in a batch of each process (default: {BATCH})"
    )
    parser.option(
        "threads",
        type=whole_number,
        metavar="N",
        help="threads of each process (default: the cores are divided among them)",
    )
    parser.option("retry", action="store_true", help=f"retry {items} that failed before")
    parser.option("backend", choices=("local", "ray"), help="what runs the processes: docs/scale.md (default: local)")
    parser.option("address", help="of the Ray cluster, or auto for one on this machine (default: start Ray here)")
    add_parameters(parser, text2img, [parameter for parameter in PAINT_OPTIONS if parameter not in without])
    parser.add_edge("device", "dtype")


def options_of(parser: Parser, arguments: Sequence[str], required: Sequence[str] = ()) -> dict[str, Any]:
    """Parse options. Raises `ValueError` for positional words, and if `--out` or another required option is missing."""
    options, words, _ = parser.parse(arguments)
    if words:
        raise ValueError(f"{parser.prog} takes options only, got {words[0]!r}")
    for name in ("out", *required):
        if name not in options:
            raise ValueError(f"{parser.prog} needs --{name.replace('_', '-')}; see {parser.prog} --help")
    return options


def template_of(options: Mapping[str, Any]) -> Request:
    """The request that is painted for every caption, with an empty prompt."""
    return request_of(text2img, {"prompt": ""}, {name: value for name, value in options.items() if name != "seed"})


def model_of(options: Mapping[str, Any], requests: Sequence[Request] = ()) -> "Kandinsky":
    """The model, with no weights read yet; a published one is downloaded here, before any process starts.

    requests: what it is needed for, else `template_of`.
    """
    from kandinsky22.engine.kandinsky import Kandinsky

    model, needed = options.get("model", catalog.BOX), requests or [template_of(options)]
    return Kandinsky.load(model, device=options.get("device"), dtype=options.get("dtype"), request=needed)


def model_clip(options: Mapping[str, Any]) -> "ClipFeatures":
    """CLIP features by the model's own image and text encoders."""
    from kandinsky22.evaluation.features import ClipFeatures

    model = model_of(options)
    return ClipFeatures.of_model(model.stored.prior, model.device)


def device_name(options: Mapping[str, Any]) -> str:
    """The name of the device to compute on."""
    from kandinsky22.engine.device import device_of

    return str(device_of(options.get("device")))


def shard_of(options: Mapping[str, Any]) -> Shard:
    """The shard that `--shard` names."""
    return Shard.parse(options["shard"]) if "shard" in options else UNSHARDED


@contextmanager
def start_painter(options: Mapping[str, Any], requests: Sequence[Request] = ()) -> "Iterator[UnitPainter]":
    """Processes that paint work units on this machine: one per core for a small model, else one.

    requests: what the model is needed for, else `template_of`.
    """
    from kandinsky22.backends.pool import Pool, cores
    from kandinsky22.backends.work_units import UnitPainter

    requests = requests or [template_of(options)]
    model = model_of(options, requests)
    batch, name = options.get("batch", BATCH), options.get("model", catalog.BOX)
    where = {key: options.get(key) for key in ("device", "dtype", "threads")}
    if options.get("backend") == "ray":
        ray_data = _ray_data()
        with ray_data.start(
            name,
            processes=options.get("processes"),
            address=options.get("address"),
            batch=batch,
            request=requests,
            **where,
        ) as ray_painter:
            yield ray_painter
        return
    if "address" in options:
        raise ValueError("--address is of a Ray cluster; add --backend ray")
    small = model.device.type == "cpu" and model.stored.first.unet.elements < SMALL
    processes = options.get("processes", cores() if small else 1)
    with Pool.of(name, processes=processes, request=requests, **where) as pool:
        yield UnitPainter(pool, batch=batch, processes=processes)


def _ray_data() -> "ModuleType":
    """The module for Ray Data. Raises `ValueError` if Ray is not installed."""
    try:
        from kandinsky22.backends import ray_data
    except ModuleNotFoundError as error:
        raise ValueError(f"--backend ray needs {error.name}; install it: pip install 'kandinsky22[ray]'") from None
    return ray_data


def local_model(options: Mapping[str, Any]) -> "Kandinsky | None":
    """The model, if all of it is on this machine, or else None; nothing is downloaded."""
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


def run_notes(options: Mapping[str, Any], *, linear: bool = False) -> Callable[[], dict[str, Any]]:
    """A function that returns the notes stored in a new run: its command and the hashes of its weight files.

    linear: with the files of the linear prior.
    """

    @cache
    def notes() -> dict[str, Any]:
        from kandinsky22.evaluation import protocol

        hashes = model_of(options).stored.sha256(catalog.DECODER, linear=linear)
        return {"command": protocol.command(), "weights_sha256": hashes}

    return notes


def paint_captions(options: Mapping[str, Any], captions: "Captions", shard: "Shard | None" = None, **how: Any) -> "Run":
    """Paint a shard of captions, and return its run; prints an estimate first, with the time after the first work unit.

    how: `least` is passed to `generate.generate`, `check` and `seed` to `generate.open_run`.
    """
    from kandinsky22.backends.estimate import estimate
    from kandinsky22.evaluation import generate

    shard, retry, least = shard or UNSHARDED, options.get("retry", False), how.pop("least", 1)
    with start_painter(options) as painter:
        request = template_of(options)
        notes = run_notes(options, linear=request.prior.linear)
        run = generate.open_run(painter, options["out"], captions, request, annotations=notes, **how)

        def paint(max_units: int | None = None) -> "Iterator[tuple[str, RunProgress]]":
            for progress in generate.generate(painter, run, shard=shard, retry=retry, max_units=max_units, least=least):
                yield run.folder.name, progress

        needs = estimate(run, shard, processes=painter.processes, retry=retry)
        if needs.seconds is None:
            echo(f"{describe_estimate(needs)}; the first work unit is timed")
            show_progress(paint(max_units=1))
            needs = estimate(run, shard, processes=painter.processes, retry=retry)
        echo(describe_estimate(needs))
        show_progress(paint())
    return run


def whole_number(text: str) -> int:
    """Parse an integer from 1 up. Raises `argparse.ArgumentTypeError` for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)
