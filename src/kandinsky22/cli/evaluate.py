"""`kandinsky22 evaluate`: paint captions at scale, measure the pictures, and write a report of it."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.cli.evaluation_options import (
    device_name,
    local_model,
    model_clip,
    model_of,
    options_of,
    paint_captions,
    parser_of,
    run_notes,
    shard_of,
    start_painter,
    template_of,
    whole_number,
)
from kandinsky22.cli.evaluation_progress import describe_estimate, progress_reporter, show_progress
from kandinsky22.cli.options import Parser
from kandinsky22.console import echo
from kandinsky22.request import Request
from kandinsky22.request.presets import SPEEDS

if TYPE_CHECKING:
    from kandinsky22.backends.work_units import UnitPainter
    from kandinsky22.evaluation.cells import CaptionSet, Cell
    from kandinsky22.evaluation.features import ClipFeatures, Features
    from kandinsky22.evaluation.report import Report

RESIZES = ("clean", "rounded", "legacy")  # repeated here so that --help needs no torch; a test compares them
SPED_UP_BY = ("sampler", "num_inference_steps", "speed", "guidance_interval", "reuse")
WORLD_COUNT, KID_SIZE = 500, 1000
NOT_COMPARED = "The model is not on this machine, so its weights were not compared with those of the run."
USAGE = """kandinsky22 evaluate coco30k --captions FILE --reference PLACE --inception FILE --out FOLDER
       kandinsky22 evaluate world --out FOLDER
       kandinsky22 evaluate sweep --out FOLDER
       kandinsky22 evaluate speed --out FOLDER
       kandinsky22 evaluate stats FOLDER ... --inception FILE --output FILE"""


def main(arguments: Sequence[str]) -> None:
    """Run one of the evaluations."""
    first = arguments[0] if arguments else "--help"
    if first in EVALUATIONS:
        EVALUATIONS[first](arguments[1:])
        return
    if not first.startswith("-"):
        raise ValueError(f"there is no evaluation {first}; there are {', '.join(EVALUATIONS)}")
    epilog = "\n".join(
        ["evaluations:", *(f"  {name:8} {(of.__doc__ or '').strip()}" for name, of in EVALUATIONS.items())]
    )
    Parser("kandinsky22 evaluate", "Measure a model: docs/evaluation.md.", usage=USAGE, epilog=epilog).parse([first])


def coco30k(arguments: Sequence[str]) -> None:
    """FID and more over captions of COCO, as on the model card."""
    needs = "--captions FILE --reference PLACE --inception FILE"
    parser = parser_of("coco30k", "Paint a file of captions, and compare the pictures with real ones.", needs)
    add = parser.option
    captions_help = ".csv or .tsv with a caption column, or .txt with one per line (needed)"
    add("captions", type=Path, metavar="FILE", help=captions_help)
    reference_help = "a folder of real pictures, or a file from `evaluate stats` (needed)"
    add("reference", type=Path, metavar="PLACE", help=reference_help)
    add("inception", type=Path, metavar="FILE", help="weights: pt_inception-2015-12-05-6726825d.pth (needed)")
    add("resize", choices=RESIZES, help="how pictures are resized for it (default: clean)")
    add("clip", type=Path, metavar="FOLDER", help="a CLIP in transformers' format, for the CLIP score")
    add("cmmd_clip", type=Path, metavar="FOLDER", help="a CLIP for CMMD; its authors' is clip-vit-large-patch14-336")
    add("cmmd_reference", type=Path, metavar="PLACE", help="the real pictures for CMMD (default: --reference)")
    add("kid_size", type=whole_number, metavar="N", help=f"pictures in a subset of KID (default: {KID_SIZE})")
    add("any_size", action="store_true", help="compare pictures of one size with real ones of another")
    add("seed", type=int, metavar="N", help="from which seeds of captions without one are derived (default: 0)")
    add("shard", metavar="I/N", help="paint and measure only shard I of N; score without this when all are painted")
    options = options_of(parser, arguments, required=("captions", "reference", "inception"))

    from kandinsky22.evaluation import captions, coco, manifest, painted_run, plots, protocol, reference
    from kandinsky22.evaluation.features import ClipFeatures, InceptionFeatures

    plots.check()
    to_paint, out, device = captions.read(options["captions"]), options["out"], device_name(options)
    manifest.check_folder(out)
    shard = shard_of(options)
    unsharded = shard.count == 1
    inception = InceptionFeatures(options["inception"], options.get("resize", "clean"), device)
    clips = {name: ClipFeatures.of_folder(options[name], device) for name in ("clip", "cmmd_clip") if name in options}
    clip, cmmd_clip = clips.get("clip"), clips.get("cmmd_clip")
    kid_size, any_size = options.get("kid_size", KID_SIZE), options.get("any_size", False)
    place = options["reference"]
    _check_enough(len(to_paint.items), "captions", inception.dim, kid_size)
    with progress_reporter() as report_progress:  # errors in the reference are found before hours of painting
        real = coco.real_pictures(place, inception, out, "real-pictures", report_progress, measure=unsharded)
        _check_enough(real.count, "real pictures", inception.dim, kid_size)
        cmmd = None
        if cmmd_clip and unsharded:
            cmmd_place = options.get("cmmd_reference", place)
            theirs = coco.reference_statistics(cmmd_place, cmmd_clip, out, "real-pictures-for-cmmd", report_progress)
            _ = theirs.rows  # raises ValueError for a file without the features of pictures
            cmmd = (cmmd_clip, theirs)

    def check(template: Request) -> None:
        if not any_size:
            reference.check_sizes(real.sizes, [(template.height or 0, template.width or 0)])

    model = local_model(options) if unsharded else None
    given = {name: options[name] for name in ("seed", "batch", "dtype", "retry") if options.get(name, "auto") != "auto"}
    request = template_of(options)
    run = painted_run.find_painted_run(out, to_paint, request, model=model, **given) if unsharded else None
    remarks = [NOT_COMPARED] if run and not model else []
    if run is None:
        least = max(inception.dim + 1, kid_size)
        run = paint_captions(options, to_paint, shard, least=least, check=check, seed=options.get("seed", 0))
    with progress_reporter() as report_progress:
        if not unsharded or real.statistics is None:
            networks = {"pictures": inception, "pictures-by-clip": clip, "pictures-for-cmmd": cmmd_clip}
            given_networks = {name: network for name, network in networks.items() if network}
            painted_run.measure_shard(run, shard, given_networks, report_progress)
            echo(f"shard {shard} is painted; when all are, the same command without --shard writes the report")
            return
        report = coco.report(
            run,
            place,
            real.statistics,
            inception,
            clip=clip,
            cmmd=cmmd,
            kid_size=kid_size,
            any_size=any_size,
            show_progress=report_progress,
            command=protocol.command(),
            remarks=remarks,
        )
    _write(out, report)


def world(arguments: Sequence[str]) -> None:
    """The picture world: an oracle reads what was painted."""
    parser = parser_of("world", "Paint fresh captions of the small model's world, and read what the pictures show.")
    parser.option("count", type=whole_number, metavar="N", help=f"how many captions (default: {WORLD_COUNT})")
    options = options_of(parser, arguments)

    from kandinsky22.evaluation import manifest, plots, protocol
    from kandinsky22.evaluation import world as picture_world

    plots.check()
    manifest.check_folder(options["out"])
    captions, clip = picture_world.captions(options.get("count", WORLD_COUNT)), model_clip(options)
    run = paint_captions(options, captions)
    with progress_reporter() as report_progress:
        report = picture_world.report(run, clip, show_progress=report_progress, command=protocol.command())
    _write(options["out"], report)


def sweep(arguments: Sequence[str]) -> None:
    """Samplers and steps in the picture world: what a default is chosen from."""
    without = ("sampler", "num_inference_steps")
    parser = parser_of("sweep", "Paint the same captions with every sampler at every number of steps.", without=without)
    add = parser.option
    add("samplers", type=_names, metavar="NAME,...", help="which (default: ddpm,ddim,dpmpp_2m,unipc,euler,heun)")
    add("numbers", type=_counts, metavar="N,...", help="of how many steps (default: 5,10,15,20,30,50)")
    add("scenes", type=whole_number, metavar="N", help="captions of a cell (default: 40)")
    add("seeds", type=whole_number, metavar="N", help="pictures of each caption (default: 5)")
    options = options_of(parser, arguments)

    from kandinsky22.evaluation import cells as sweep_cells
    from kandinsky22.evaluation import manifest, plots, protocol
    from kandinsky22.evaluation import sweep as sampler_sweep

    plots.check()
    folder = options["out"]
    manifest.check_folder(folder, of_runs=True)
    captions = _caption_set(sampler_sweep.CAPTIONS, options)
    template, clip = template_of(options), model_clip(options)
    samplers, steps = options.get("samplers", sampler_sweep.SAMPLERS), options.get("numbers", sampler_sweep.STEPS)
    cells = sampler_sweep.grid(template, samplers, steps)
    with start_painter(options) as painter:
        grid = _paint_and_score(painter, options, cells, clip, captions)
        chosen = sampler_sweep.best(grid)
        variants = sampler_sweep.guidance_variants(chosen.name, chosen.request)
        guided = _paint_and_score(painter, options, variants, clip, captions)
        final = sampler_sweep.best([chosen, *guided])
        linear = dict(_supported(painter, sampler_sweep.linear_prior_variant(final.name, final.request)))
        others = _paint_and_score(painter, options, linear, clip, captions) if linear else []
    names = [cell.name for cell in (*grid, *guided, *others)]
    description = sweep_cells.cells_protocol(folder, names, clip, protocol.command())
    _write(folder, sampler_sweep.report(chosen.request.model, grid, guided, others, description))


def speed(arguments: Sequence[str]) -> None:
    """What speed settings cost in the picture world; the presets are chosen from it."""
    parser = parser_of("speed", "Paint the same captions with every combination of what speeds up.", without=SPED_UP_BY)
    add = parser.option
    add("samplers", type=_names, metavar="NAME,...", help="with fewer steps (default: ddpm,euler,dpmpp_2m)")
    add("numbers", type=_counts, metavar="N,...", help="of these steps (default: 15,10,5)")
    add("intervals", type=_intervals, metavar="X-X,...", help="in which guidance is on (default: 0-0.8,0.2-0.8)")
    add("reuse", type=_counts, metavar="N,...", help="calls for which deep features serve (default: 2,3,5)")
    add("only", type=_names, metavar="NAME,...", help="cells to paint beside the exact ones (default: all)")
    add("scenes", type=whole_number, metavar="N", help="captions of a cell (default: 400)")
    add("seeds", type=whole_number, metavar="N", help="pictures of each caption (default: 1)")
    add("stream", type=whole_number, metavar="N", help="which scenes; another number gives others (default: 30)")
    options = options_of(parser, arguments)

    from kandinsky22.evaluation import cells as setting_cells
    from kandinsky22.evaluation import manifest, plots, protocol
    from kandinsky22.evaluation import speed_settings as settings

    plots.check()
    folder = options["out"]
    manifest.check_folder(folder, of_runs=True)
    captions = _caption_set(settings.CAPTIONS, options)
    without = {name: value for name, value in options.items() if name not in SPED_UP_BY}
    template, model, clip = template_of(without), model_of(without), model_clip(without)
    cells = settings.grid(
        template,
        options.get("samplers", settings.SAMPLERS),
        options.get("numbers", settings.STEPS),
        options.get("intervals", settings.INTERVALS),
        options.get("reuse", settings.REUSE),
    )
    cells |= {name: template_of(without | {"speed": name}) for name in SPEEDS if name != settings.EXACT}
    if "only" in options:
        cells = settings.exact_cells(template) | _select(cells, options["only"])
    with start_painter(without) as painter:
        scored = _paint_and_score(painter, without, cells, clip, captions)
    with progress_reporter() as report_progress:
        comparisons = settings.compare(folder, scored, model, clip, report_progress)
    description = setting_cells.cells_protocol(folder, [cell.name for cell in scored], clip, protocol.command())
    _write(folder, settings.report(template.model, comparisons, description))


def _caption_set(defaults: "CaptionSet", options: Mapping[str, Any]) -> "CaptionSet":
    """The captions of all cells, with the options `--scenes`, `--seeds` and `--stream` that were given."""
    return replace(defaults, **{name: options[name] for name in ("scenes", "seeds", "stream") if name in options})


def _paint_and_score(
    painter: "UnitPainter",
    options: Mapping[str, Any],
    cells: Mapping[str, Request],
    clip: "ClipFeatures",
    captions: "CaptionSet",
) -> "list[Cell]":
    """Print what painting some cells will need, paint them, and score them."""
    from kandinsky22.evaluation.cells import estimate_cells, paint_cells, score_cells

    folder, retry = options["out"], options.get("retry", False)
    annotations = run_notes(options, linear=any(request.prior.linear for request in cells.values()))
    echo(f"{len(cells)} cells; if their time is not known yet, two work units are timed first")
    estimate = estimate_cells(painter, folder, cells, captions, retry=retry, annotations=annotations)
    echo(describe_estimate(estimate))
    show_progress(paint_cells(painter, folder, cells, captions, retry=retry))
    with progress_reporter() as report_progress:
        return score_cells(folder, [*cells], clip, captions, report_progress)


def _select(cells: Mapping[str, Request], names: Sequence[str]) -> dict[str, Request]:
    """The cells of these names. Raises `ValueError` for an unknown name."""
    if unknown := [name for name in names if name not in cells]:
        raise ValueError(f"there is no cell {unknown[0]}; there are {', '.join(cells)}")
    return {name: cells[name] for name in names}


def _supported(painter: "UnitPainter", cells: Mapping[str, Request]) -> Iterator[tuple[str, Request]]:
    """The cells that the model supports; for the others, prints why not."""
    for name, request in cells.items():
        try:
            painter.backend.resolve(replace(request, seed=0))
        except ValueError as error:
            echo(f"{name} is left out: {error}")
        else:
            yield name, request


def stats(arguments: Sequence[str]) -> None:
    """Measure real pictures once, or merge statistics of parts."""
    parser = Parser(
        "kandinsky22 evaluate stats",
        "Measure pictures once, for every evaluation against them; or merge the statistics of parts.",
        usage="kandinsky22 evaluate stats FOLDER ... (--inception FILE | --clip FOLDER) --output FILE.safetensors\n"
        "       kandinsky22 evaluate stats PART.safetensors ... --output FILE.safetensors",
    )
    parser.option("inception", type=Path, metavar="FILE", help="weights of the 2015 Inception, for FID and KID")
    parser.option("clip", type=Path, metavar="FOLDER", help="a CLIP, for CMMD (--cmmd-reference)")
    parser.option("resize", choices=RESIZES, help="how pictures are resized for Inception (default: clean)")
    parser.option("shard", metavar="I/N", help="measure only part I of N, to be merged later")
    parser.option("output", short="-o", type=Path, metavar="FILE", help="the file to write, .safetensors")
    parser.add_edge("device")
    options, arguments_left, _ = parser.parse(arguments)
    places = [*map(Path, arguments_left)]
    merging = bool(places) and all(place.suffix == ".safetensors" for place in places)
    one_network = ("inception" in options) != ("clip" in options)
    if not places or "output" not in options or (not merging and not one_network):
        raise ValueError(
            "evaluate stats needs folders, --output, and either --inception or --clip; or .safetensors and --output"
        )
    if options["output"].suffix != ".safetensors":
        raise ValueError("evaluate stats writes a file whose name ends in .safetensors")
    if merging and (given := [name for name in ("inception", "clip", "resize", "shard") if name in options]):
        raise ValueError(f"statistics are merged as they are; leave out --{given[0]}")
    if "resize" in options and "clip" in options:
        raise ValueError("--resize is for Inception; a CLIP resizes as its own configuration says; leave it out")

    from kandinsky22.evaluation import reference

    if merging:
        statistics = reference.load_parts(places)
    else:
        features, pictures = _features(options), reference.find_pictures(*places)
        if "shard" in options:
            pictures = dict(shard_of(options).select([*pictures.items()]))
            if not pictures:
                raise ValueError(f"part {options['shard']} has no pictures; divide them into fewer parts")
        with progress_reporter() as report_progress:
            statistics = reference.measure(
                pictures, features, progress=lambda done, of: report_progress("measuring pictures", done, of)
            )
    reference.save(options["output"], statistics)
    assert statistics.source is not None
    source = statistics.source
    echo(f"{options['output']}: {statistics.count:.0f} pictures by {source.name}, {source.resize}")


def _features(options: Mapping[str, Any]) -> "Features":
    """The network that measures real pictures; for Inception, prints whether its weights are the published ones."""
    from kandinsky22.evaluation import protocol
    from kandinsky22.evaluation.features import ClipFeatures, InceptionFeatures

    device = device_name(options)
    if "clip" in options:
        return ClipFeatures.of_folder(options["clip"], device)
    features = InceptionFeatures(options["inception"], options.get("resize", "clean"), device)
    echo(f"Inception's weights are {'' if protocol.is_published(features) else 'not '}the published file")
    return features


EVALUATIONS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "coco30k": coco30k,
    "world": world,
    "sweep": sweep,
    "speed": speed,
    "stats": stats,
}


def _write(folder: Path, report: "Report") -> None:
    """Write a report, and print its numbers and where its page is."""
    from kandinsky22.evaluation.report import write

    page = write(folder, report)
    for number in report.numbers:
        echo(f"{number.name}: {number.value}  ({number.about})")
    echo(page)


def _check_enough(count: float, what: str, dim: int, kid_size: int) -> None:
    """Raises `ValueError` for fewer captions or real pictures than FID and KID need."""
    if count <= dim:
        raise ValueError(
            f"FID needs more {what} than Inception has features ({dim}), and there are {count:.0f}; give more"
        )
    if not 2 <= kid_size <= count:
        raise ValueError(
            f"KID's subsets are of 2 to {count:.0f} of the {what}, got {kid_size}; give another --kid-size"
        )


def _counts(text: str) -> list[int]:
    return [whole_number(part) for part in text.split(",")]


def _intervals(text: str) -> list[tuple[float, ...]]:
    try:
        return [tuple(map(float, part.split("-"))) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are not intervals; write them like 0-0.8") from None


def _names(text: str) -> list[str]:
    return text.split(",")
