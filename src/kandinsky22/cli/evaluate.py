"""`kandinsky22 evaluate`: paint captions at scale, measure the pictures, and write a report of it."""

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.checkpoints import catalog
from kandinsky22.cli.options import Parser, add_parameters, request_of
from kandinsky22.cli.terminal import LINE_EVERY, is_terminal
from kandinsky22.request import Request
from kandinsky22.tasks import text2img

if TYPE_CHECKING:
    from kandinsky22.backends.pool import Pool
    from kandinsky22.evaluation.features import ClipFeatures, Features
    from kandinsky22.evaluation.generate import Standing
    from kandinsky22.evaluation.manifest import Run, Shard
    from kandinsky22.kandinsky import Kandinsky

RESIZES = ("clean", "rounded", "legacy")  # named here so that --help needs no torch; a test keeps them true
PAINTED_BY = (
    "height", "width", "num_inference_steps", "guidance_scale", "sampler", "prior", "prior_num_inference_steps",
    "prior_guidance_scale", "prior_sampler", "negative_prompt", "model",
)  # fmt: skip
SMALL = 100_000_000  # numbers of a U-Net of which every core can have its own
WORLD_COUNT, KID_SIZE = 500, 1000
USAGE = """kandinsky22 evaluate coco30k --captions FILE --reference PLACE --inception FILE --out FOLDER
       kandinsky22 evaluate world --out FOLDER
       kandinsky22 evaluate sweep --out FOLDER
       kandinsky22 evaluate stats FOLDER --inception FILE --output FILE"""


def main(arguments: Sequence[str]) -> None:
    """Carry out one of the evaluations."""
    first = arguments[0] if arguments else "--help"
    if first in EVALUATIONS:
        EVALUATIONS[first](arguments[1:])
        return
    if not first.startswith("-"):
        raise ValueError(f"there is no evaluation {first}; there are {', '.join(EVALUATIONS)}")
    epilog = "\n".join(
        ["evaluations:", *(f"  {name:8} {(of.__doc__ or '').strip()}" for name, of in EVALUATIONS.items())]
    )
    Parser("kandinsky22 evaluate", "Measure a model: docs/evaluation.md.", usage=USAGE, epilog=epilog).parse(arguments)


def coco30k(arguments: Sequence[str]) -> None:
    """FID and more over captions of COCO, as on the model card."""
    parser = _parser("coco30k", "Paint a file of captions, and compare the pictures with real ones.")
    add = parser.option
    add("captions", type=Path, metavar="FILE", help=".csv or .tsv with a caption column, or .txt with one a line")
    add("reference", type=Path, metavar="PLACE", help="a folder of real pictures, or what `evaluate stats` made of one")
    add(
        "inception",
        type=Path,
        metavar="FILE",
        help="weights of the 2015 Inception: pt_inception-2015-12-05-6726825d.pth",
    )
    add("resize", choices=RESIZES, help="how pictures are resized for it (default: clean)")
    add("clip", type=Path, metavar="FOLDER", help="a CLIP for the CLIP score, as transformers keeps it")
    add("cmmd_clip", type=Path, metavar="FOLDER", help="a CLIP for CMMD; its authors' is clip-vit-large-patch14-336")
    add("kid_size", type=_count, metavar="N", help=f"pictures in a subset of KID (default: {KID_SIZE})")
    add("any_size", action="store_true", help="compare pictures of one size with real ones of another")
    add("shard", metavar="I/N", help="paint only part I of N; score without this when all are painted")
    options = _options(parser, arguments, needed=("captions", "reference", "inception"))

    from kandinsky22.evaluation import captions, plots, reference, suite
    from kandinsky22.evaluation.features import ClipFeatures, InceptionFeatures
    from kandinsky22.evaluation.manifest import Shard

    plots.check()
    read = captions.read(options["captions"])
    shard = Shard.parsed(options["shard"]) if "shard" in options else Shard()
    device = _device(options)
    inception = InceptionFeatures(options["inception"], options.get("resize", "clean"), device)
    clips = {name: ClipFeatures.of_folder(options[name], device) for name in ("clip", "cmmd_clip") if name in options}
    kid_size, count = options.get("kid_size", KID_SIZE), len(read.items)
    _check_enough(count, inception, kid_size)
    if options["reference"].is_dir():
        reference.pictures_in(options["reference"])
    else:
        reference.load(options["reference"]).check(reference.by(inception))
        if "cmmd_clip" in options:
            raise ValueError("CMMD needs the real pictures themselves; give their folder as --reference")

    def begin(painter: "Pool") -> "Run":
        from kandinsky22.evaluation import generate

        return generate.begin(painter, options["out"], read, _template(options), seed=options.get("seed", 0))

    run = _painted(options, begin, shard)
    if shard.of > 1:
        print(f"part {shard} is painted; when all are, the same command without --shard writes the report")
        return
    with _saying() as say:
        report = suite.coco(
            run, options["reference"], inception, clip=clips.get("clip"), cmmd_clip=clips.get("cmmd_clip"),
            kid_size=kid_size, any_size=options.get("any_size", False), say=say, command=suite.command(),
        )  # fmt: skip
    _written(options["out"], report)


def world(arguments: Sequence[str]) -> None:
    """The picture world: an oracle reads what was painted."""
    parser = _parser("world", "Paint fresh captions of the small model's world, and read back what the pictures show.")
    parser.option("count", type=_count, metavar="N", help=f"how many captions (default: {WORLD_COUNT})")
    options = _options(parser, arguments)

    from kandinsky22.evaluation import generate, plots, suite

    plots.check()
    captions = suite.world_captions(options.get("count", WORLD_COUNT))
    run = _painted(options, lambda painter: generate.begin(painter, options["out"], captions, _template(options)))
    with _saying() as say:
        report = suite.world(run, _own_clip(options), say=say, command=suite.command())
    _written(options["out"], report)


def sweep(arguments: Sequence[str]) -> None:
    """Samplers and steps in the picture world: what a default is chosen from."""
    parser = _parser("sweep", "Paint the same captions with every sampler at every number of steps.")
    add = parser.option
    add("samplers", type=_names, metavar="NAME,...", help="which (default: ddpm,ddim,dpmpp_2m,unipc,euler,heun)")
    add("numbers", type=_counts, metavar="N,...", help="of how many steps (default: 5,10,15,20,30,50)")
    add("scenes", type=_count, metavar="N", help="captions of a cell (default: 40)")
    add("seeds", type=_count, metavar="N", help="pictures of each caption (default: 5)")
    options = _options(parser, arguments)

    from kandinsky22.evaluation import plots, reference, suite
    from kandinsky22.evaluation import sweep as sweeping

    plots.check()
    folder, scenes, seeds = options["out"], options.get("scenes", sweeping.SCENES), options.get("seeds", sweeping.SEEDS)
    template = _template(options)
    cells = sweeping.grid(template, options.get("samplers", sweeping.SAMPLERS), options.get("numbers", sweeping.STEPS))
    clip = _own_clip(options)
    with _pool(options) as painter:

        def carried_out(cells: Mapping[str, Request]) -> list[sweeping.Cell]:
            _told(sweeping.paint(painter, folder, cells, scenes, seeds))
            with _saying() as say:
                return sweeping.judge(folder, [*cells], clip, say, seeds)

        judged = carried_out(cells)
        beside = carried_out(sweeping.around(cells[sweeping.best(judged).name]))
    protocol = {
        "captions": f"{scenes} fresh scenes, {seeds} seeds each", "features": reference.by(clip)._asdict(),
        "hardware": suite.hardware(), "versions": suite.versions(), "command": suite.command(),
    }  # fmt: skip
    _written(folder, sweeping.report(template.model, judged, beside, protocol))


def stats(arguments: Sequence[str]) -> None:
    """Measure a folder of real pictures once."""
    parser = Parser(
        "kandinsky22 evaluate stats", "Measure a folder of pictures once, for every evaluation against it.",
        usage="kandinsky22 evaluate stats FOLDER --inception FILE --output FILE.safetensors",
    )  # fmt: skip
    parser.option("inception", type=Path, metavar="FILE", help="weights of the 2015 Inception")
    parser.option("clip", type=Path, metavar="FOLDER", help="a CLIP instead, for CMMD")
    parser.option("resize", choices=RESIZES, help="how pictures are resized for Inception (default: clean)")
    parser.option("output", short="-o", type=Path, metavar="FILE", help="where the statistics go, .safetensors")
    parser.add_edge("device")
    options, words, _ = parser.parse(arguments)
    if len(words) != 1 or "output" not in options or ("inception" in options) == ("clip" in options):
        raise ValueError("evaluate stats needs a folder, --output, and either --inception or --clip")

    from kandinsky22.evaluation import reference
    from kandinsky22.evaluation.features import ClipFeatures, InceptionFeatures

    pictures, device = reference.pictures_in(Path(words[0])), _device(options)
    features: Features = (
        ClipFeatures.of_folder(options["clip"], device)
        if "clip" in options
        else InceptionFeatures(options["inception"], options.get("resize", "clean"), device)
    )
    with _saying() as say:
        found = reference.measure(
            pictures, features, progress=lambda done, of: say("looking at the pictures", done, of)
        )
    reference.save(options["output"], found)
    print(f"{options['output']}: {found.count:.0f} pictures by {features.name}, {features.resize}")


EVALUATIONS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "coco30k": coco30k, "world": world, "sweep": sweep, "stats": stats,
}  # fmt: skip


def _parser(name: str, description: str) -> Parser:
    """The options that every evaluation that paints has."""
    parser = Parser(
        f"kandinsky22 evaluate {name}", description, usage=f"kandinsky22 evaluate {name} --out FOLDER [options]"
    )
    parser.option("out", type=Path, metavar="FOLDER", help="where pictures and report go; the same one goes on")
    parser.option("seed", type=int, metavar="N", help="what the captions' seeds are made of (default: 0)")
    parser.option("processes", type=_count, metavar="N", help="that paint side by side (default: what fits the model)")
    parser.option("batch", type=_count, metavar="N", help="pictures painted together by each (default: 8)")
    parser.option("retry", action="store_true", help="try captions again that failed before")
    add_parameters(parser, text2img, PAINTED_BY)
    parser.add_edge("device", "dtype")
    return parser


def _options(parser: Parser, arguments: Sequence[str], needed: Sequence[str] = ()) -> dict[str, Any]:
    options, words, _ = parser.parse(arguments)
    if words:
        raise ValueError(f"{parser.prog} takes options only, got {words[0]!r}")
    for name in ("out", *needed):
        if name not in options:
            raise ValueError(f"{parser.prog} needs --{name.replace('_', '-')}; see {parser.prog} --help")
    return options


def _template(options: Mapping[str, Any]) -> Request:
    """How every caption is painted."""
    return request_of(text2img, {"prompt": ""}, {name: value for name, value in options.items() if name != "seed"})


def _model(options: Mapping[str, Any]) -> "Kandinsky":
    """The model, of which nothing is read yet; a published one is fetched here, before there are processes."""
    from kandinsky22.kandinsky import Kandinsky

    model = options.get("model", catalog.BOX)
    return Kandinsky.load(model, device=options.get("device"), dtype=options.get("dtype"), request=_template(options))


def _own_clip(options: Mapping[str, Any]) -> "ClipFeatures":
    from kandinsky22.evaluation.features import ClipFeatures

    model = _model(options)
    return ClipFeatures.of_model(model.stored.prior, model.device)


def _device(options: Mapping[str, Any]) -> str:
    from kandinsky22.machine import device_of

    return str(device_of(options.get("device")))


def _pool(options: Mapping[str, Any]) -> "Pool":
    from kandinsky22.backends.pool import Pool

    model = _model(options)
    small = model.device.type == "cpu" and model.stored.first.unet.elements < SMALL
    processes = options.get("processes", (os.cpu_count() or 1) if small else 1)
    return Pool.of(
        options.get("model", catalog.BOX), processes=processes, batch=options.get("batch", 8),
        device=options.get("device"), dtype=options.get("dtype"),
    )  # fmt: skip


def _painted(options: Mapping[str, Any], begin: "Callable[[Pool], Run]", shard: "Shard | None" = None) -> "Run":
    """The run, its shard painted; what it will take is said before and after the first pictures."""
    from kandinsky22.evaluation import generate
    from kandinsky22.evaluation.manifest import WHOLE

    shard, retry = shard or WHOLE, options.get("retry", False)
    with _pool(options) as painter:
        run = begin(painter)
        needs = generate.estimate(run, shard, processes=painter.processes, retry=retry)
        print(
            f"{needs.pictures} pictures to paint, about {needs.bytes / 1e9:.2f} of {needs.free / 1e9:.0f} GB that are free"
        )
        _told(
            (str(run.folder.name), standing) for standing in generate.generate(painter, run, shard=shard, retry=retry)
        )
    return run


def _told(standings: "Iterable[tuple[str, Standing]]") -> None:
    """Say how far painting is: a bar in a terminal, else a line now and then."""
    if is_terminal():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        said = TextColumn("{task.fields[said]}")
        with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), said) as bars:
            tasks: dict[str, Any] = {}
            for name, now in standings:
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=now.of, said="")
                bars.update(tasks[name], completed=now.done + now.failed, said=_pace(now))
        return
    last = 0.0
    for name, now in standings:
        if now.done + now.failed == now.of or time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            print(f"{name}: {now.done} of {now.of} {_pace(now)}", flush=True)


def _pace(now: "Standing") -> str:
    failed = f", {now.failed} failed" if now.failed else ""
    if now.rate is None or now.left is None:
        return failed
    minutes, seconds = divmod(round(now.left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{now.rate:.2f} pictures/s, {hours}:{minutes:02}:{seconds:02} left{failed}"


@contextmanager
def _saying() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of what is not painting."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def say(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done)

        yield say


def _written(folder: Path, report: Any) -> None:
    from kandinsky22.evaluation.report import write

    page = write(folder, report)
    for number in report.numbers:
        print(f"{number.name}: {number.value}  ({number.about})")
    print(page)


def _check_enough(count: int, inception: "Features", kid_size: int) -> None:
    """Before hours of painting: raises `ValueError` for fewer captions than the numbers need."""
    if count <= inception.dim:
        raise ValueError(
            f"FID needs more pictures than Inception has features ({inception.dim}), and there are {count} captions; give more"
        )
    if count < kid_size:
        raise ValueError(
            f"there are {count} captions, fewer than KID's subsets of {kid_size}; give --kid-size {count // 2}"
        )


def _count(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return text.split(",")
