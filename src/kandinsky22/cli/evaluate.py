"""`kandinsky22 evaluate`: paint captions at scale, measure the pictures, and write a report of it."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
    from kandinsky22.evaluation.generate import Estimate, Standing
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
    needs = "--captions FILE --reference PLACE --inception FILE"
    parser = _parser("coco30k", "Paint a file of captions, and compare the pictures with real ones.", needs)
    add = parser.option
    add(
        "captions",
        type=Path,
        metavar="FILE",
        help=".csv or .tsv with a caption column, or .txt with one a line (needed)",
    )
    add(
        "reference",
        type=Path,
        metavar="PLACE",
        help="a folder of real pictures, or what `evaluate stats` made (needed)",
    )
    add("inception", type=Path, metavar="FILE", help="weights: pt_inception-2015-12-05-6726825d.pth (needed)")
    add("resize", choices=RESIZES, help="how pictures are resized for it (default: clean)")
    add("clip", type=Path, metavar="FOLDER", help="a CLIP for the CLIP score, as transformers keeps it")
    add("cmmd_clip", type=Path, metavar="FOLDER", help="a CLIP for CMMD; its authors' is clip-vit-large-patch14-336")
    add("cmmd_reference", type=Path, metavar="PLACE", help="the real pictures for CMMD (default: --reference)")
    add("kid_size", type=_count, metavar="N", help=f"pictures in a subset of KID (default: {KID_SIZE})")
    add("any_size", action="store_true", help="compare pictures of one size with real ones of another")
    add("seed", type=int, metavar="N", help="what the seeds of captions without one are made of (default: 0)")
    add("retry", action="store_true", help="try captions again that failed before")
    add("shard", metavar="I/N", help="paint only part I of N; score without this when all are painted")
    options = _options(parser, arguments, needed=("captions", "reference", "inception"))

    from kandinsky22.evaluation import captions, plots, suite
    from kandinsky22.evaluation.features import ClipFeatures, InceptionFeatures
    from kandinsky22.evaluation.manifest import Shard

    plots.check()
    read, out, device = captions.read(options["captions"]), options["out"], _device(options)
    shard = Shard.parsed(options["shard"]) if "shard" in options else Shard()
    inception = InceptionFeatures(options["inception"], options.get("resize", "clean"), device)
    clips = {name: ClipFeatures.of_folder(options[name], device) for name in ("clip", "cmmd_clip") if name in options}
    kid_size, any_size = options.get("kid_size", KID_SIZE), options.get("any_size", False)
    _check_enough(len(read.items), "captions", inception.dim, kid_size)
    with _saying() as say:  # before hours of painting
        theirs = suite.statistics_of(options["reference"], inception, out, "real-pictures", say)
        _check_enough(theirs.count, "real pictures", inception.dim, kid_size)
        cmmd = None
        if "cmmd_clip" in clips:
            place = options.get("cmmd_reference", options["reference"])
            cmmd = (
                clips["cmmd_clip"],
                suite.statistics_of(place, clips["cmmd_clip"], out, "real-pictures-for-cmmd", say),
            )
            _ = cmmd[1].rows

    def begun(painter: "Pool") -> "Run":
        from kandinsky22.evaluation import generate

        run = generate.begin(painter, out, read, _template(options), seed=options.get("seed", 0))
        if not any_size:
            theirs.check_sizes([(run.template.height or 0, run.template.width or 0)])
        return run

    complete = suite.complete(out, read, _template(options)) if shard.of == 1 else None
    run = complete or _painted(options, begun, shard)
    if shard.of > 1:
        print(f"part {shard} is painted; when all are, the same command without --shard writes the report")
        return
    with _saying() as say:
        report = suite.coco(
            run, options["reference"], theirs, inception, clip=clips.get("clip"), cmmd=cmmd, kid_size=kid_size,
            any_size=any_size, say=say, command=suite.command(),
        )  # fmt: skip
    _written(out, report)


def world(arguments: Sequence[str]) -> None:
    """The picture world: an oracle reads what was painted."""
    parser = _parser("world", "Paint fresh captions of the small model's world, and read back what the pictures show.")
    parser.option("count", type=_count, metavar="N", help=f"how many captions (default: {WORLD_COUNT})")
    options = _options(parser, arguments)

    from kandinsky22.evaluation import generate, plots, suite

    plots.check()
    captions, clip = suite.world_captions(options.get("count", WORLD_COUNT)), _own_clip(options)
    run = _painted(options, lambda painter: generate.begin(painter, options["out"], captions, _template(options)))
    with _saying() as say:
        report = suite.world(run, clip, say=say, command=suite.command())
    _written(options["out"], report)


def sweep(arguments: Sequence[str]) -> None:
    """Samplers and steps in the picture world: what a default is chosen from."""
    without = ("sampler", "num_inference_steps")
    parser = _parser("sweep", "Paint the same captions with every sampler at every number of steps.", without=without)
    add = parser.option
    add("samplers", type=_names, metavar="NAME,...", help="which (default: ddpm,ddim,dpmpp_2m,unipc,euler,heun)")
    add("numbers", type=_counts, metavar="N,...", help="of how many steps (default: 5,10,15,20,30,50)")
    add("scenes", type=_count, metavar="N", help="captions of a cell (default: 40)")
    add("seeds", type=_count, metavar="N", help="pictures of each caption (default: 5)")
    options = _options(parser, arguments)

    from kandinsky22.evaluation import plots, suite
    from kandinsky22.evaluation import sweep as sweeping

    plots.check()
    folder, scenes, seeds = options["out"], options.get("scenes", sweeping.SCENES), options.get("seeds", sweeping.SEEDS)
    template, clip = _template(options), _own_clip(options)
    cells = sweeping.grid(template, options.get("samplers", sweeping.SAMPLERS), options.get("numbers", sweeping.STEPS))
    with _pool(options) as painter:

        def carried_out(cells: Mapping[str, Request]) -> list[sweeping.Cell]:
            print(f"{len(cells)} cells; where it is not known yet how long they take, two packs are timed", flush=True)
            print(_said(sweeping.expect(painter, folder, cells, scenes, seeds)), flush=True)
            _told(sweeping.paint(painter, folder, cells, scenes, seeds))
            with _saying() as say:
                return sweeping.judge(folder, [*cells], clip, say, seeds)

        grid = carried_out(cells)
        chosen = sweeping.best(grid)
        guided = carried_out(sweeping.around(chosen.name, chosen.request))
        final = sweeping.best([chosen, *guided])
        linear = dict(_possible(painter, sweeping.linear(final.name, final.request)))
        beside = carried_out(linear) if linear else []
    names = [cell.name for cell in (*grid, *guided, *beside)]
    protocol = sweeping.protocol(folder, names, clip, suite.command())
    _written(folder, sweeping.report(chosen.request.model, grid, guided, beside, protocol))


def _possible(painter: "Pool", cells: Mapping[str, Request]) -> Iterator[tuple[str, Request]]:
    """The cells that the model can paint; of the others it is said why not."""
    for name, request in cells.items():
        try:
            painter.about(replace(request, seed=0))
        except ValueError as error:
            print(f"{name} is left out: {error}")
        else:
            yield name, request


def stats(arguments: Sequence[str]) -> None:
    """Measure a folder of real pictures once."""
    parser = Parser(
        "kandinsky22 evaluate stats", "Measure a folder of pictures once, for every evaluation against it.",
        usage="kandinsky22 evaluate stats FOLDER (--inception FILE | --clip FOLDER) --output FILE.safetensors",
    )  # fmt: skip
    parser.option("inception", type=Path, metavar="FILE", help="weights of the 2015 Inception, for FID and KID")
    parser.option("clip", type=Path, metavar="FOLDER", help="a CLIP, for CMMD (--cmmd-reference)")
    parser.option("resize", choices=RESIZES, help="how pictures are resized for Inception (default: clean)")
    parser.option("output", short="-o", type=Path, metavar="FILE", help="where the statistics go, .safetensors")
    parser.add_edge("device")
    options, words, _ = parser.parse(arguments)
    if len(words) != 1 or "output" not in options or ("inception" in options) == ("clip" in options):
        raise ValueError("evaluate stats needs a folder, --output, and either --inception or --clip")
    if options["output"].suffix != ".safetensors":
        raise ValueError("evaluate stats writes a file that ends in .safetensors")
    if "resize" in options and "clip" in options:
        raise ValueError("--resize is for Inception; a CLIP resizes as its own file says")

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


def _parser(name: str, description: str, needs: str = "", without: Sequence[str] = ()) -> Parser:
    """The options that every evaluation that paints has."""
    usage = f"kandinsky22 evaluate {name} {needs}{' ' if needs else ''}--out FOLDER [options]"
    parser = Parser(f"kandinsky22 evaluate {name}", description, usage=usage)
    parser.option(
        "out", type=Path, metavar="FOLDER", help="where pictures and report go; the same one goes on (needed)"
    )
    parser.option("processes", type=_count, metavar="N", help="that paint side by side (default: what fits the model)")
    parser.option("batch", type=_count, metavar="N", help="pictures painted together by each (default: 8)")
    parser.option("threads", type=_count, metavar="N", help="of each process (default: the cores are shared out)")
    add_parameters(parser, text2img, [parameter for parameter in PAINTED_BY if parameter not in without])
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
    from kandinsky22.backends.pool import Pool, cores

    model = _model(options)
    small = model.device.type == "cpu" and model.stored.first.unet.elements < SMALL
    processes = options.get("processes", cores() if small else 1)
    return Pool.of(
        options.get("model", catalog.BOX), processes=processes, batch=options.get("batch", 8),
        device=options.get("device"), dtype=options.get("dtype"), threads=options.get("threads"),
        request=_template(options),
    )  # fmt: skip


def _painted(options: Mapping[str, Any], begin: "Callable[[Pool], Run]", shard: "Shard | None" = None) -> "Run":
    """The run, its shard painted; what it will take is said first, the time as soon as a pack was painted."""
    from kandinsky22.evaluation import generate
    from kandinsky22.evaluation.manifest import WHOLE

    shard, retry = shard or WHOLE, options.get("retry", False)
    with _pool(options) as painter:
        run = begin(painter)

        def painting(packs: int | None = None) -> "Iterator[tuple[str, Standing]]":
            standings = generate.generate(painter, run, shard=shard, retry=retry, packs=packs)
            return ((run.folder.name, standing) for standing in standings)

        needs = generate.estimate(run, shard, processes=painter.processes, retry=retry)
        if needs.seconds is None:
            print(f"{_said(needs)}; the first pack is timed", flush=True)
            _told(painting(packs=1))
            needs = generate.estimate(run, shard, processes=painter.processes, retry=retry)
        print(_said(needs), flush=True)
        _told(painting())
    return run


def _said(needs: "Estimate") -> str:
    """An estimate, in a sentence."""
    said = f"{needs.pictures} pictures to paint, {needs.calls} calls of the decoder's network"
    said += f", about {needs.bytes / 1e9:.2g} of {needs.free / 1e9:.0f} GB that are free"
    return said if needs.seconds is None else f"{said}, about {_clock(needs.seconds)}"


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
            print(f"{name}: {now.done} of {now.of}  {_pace(now)}", flush=True)


def _pace(now: "Standing") -> str:
    said = [f"{now.failed} failed"] if now.failed else []
    if now.rate is not None and now.left is not None:
        said = [f"{now.rate:.2f} pictures/s", f"{_clock(now.left)} left", *said]
    return ", ".join(said)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return "{}:{:02}:{:02}".format(*divmod(minutes, 60), seconds)


@contextmanager
def _saying() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of what is not painting, on stderr: bars in a terminal, else lines now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_terminal()) as bars:
        tasks: dict[str, Any] = {}
        last = time.monotonic()

        def say(what: str, done: int, of: int) -> None:
            nonlocal last
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done)
            if bars.disable and time.monotonic() - last >= LINE_EVERY:
                last = time.monotonic()
                print(f"{what}: {done} of {of}", file=sys.stderr, flush=True)

        yield say


def _written(folder: Path, report: Any) -> None:
    from kandinsky22.evaluation.report import write

    page = write(folder, report)
    for number in report.numbers:
        print(f"{number.name}: {number.value}  ({number.about})")
    print(page)


def _check_enough(count: float, what: str, dim: int, kid_size: int) -> None:
    """Before hours of painting: raises `ValueError` for fewer captions or real pictures than the numbers need."""
    if count <= dim:
        raise ValueError(
            f"FID needs more {what} than Inception has features ({dim}), and there are {count:.0f}; give more"
        )
    if not 2 <= kid_size <= count:
        raise ValueError(
            f"KID's subsets are of 2 to {count:.0f} of the {what}, got {kid_size}; give another --kid-size"
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
