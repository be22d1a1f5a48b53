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
    start_pool,
    template_of,
    whole_number,
)
from kandinsky22.cli.evaluation_progress import describe_estimate, progress_reporter, show_progress
from kandinsky22.cli.options import Parser
from kandinsky22.request import Request
from kandinsky22.request.presets import SPEEDS

if TYPE_CHECKING:
    from kandinsky22.backends.pool import Pool
    from kandinsky22.evaluation.features import ClipFeatures, Features
    from kandinsky22.evaluation.sweep import Cell

RESIZES = ("clean", "rounded", "legacy")  # named here so that --help needs no torch; a test keeps them true
SPED_UP_BY = ("sampler", "num_inference_steps", "speed", "guidance_interval", "reuse")
WORLD_COUNT, KID_SIZE = 500, 1000
NOT_COMPARED = "The model is not on this machine, so whether its weights are still those of the run was not compared."
USAGE = """kandinsky22 evaluate coco30k --captions FILE --reference PLACE --inception FILE --out FOLDER
       kandinsky22 evaluate world --out FOLDER
       kandinsky22 evaluate sweep --out FOLDER
       kandinsky22 evaluate dials --out FOLDER
       kandinsky22 evaluate stats FOLDER ... --inception FILE --output FILE"""


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
    parser = parser_of("coco30k", "Paint a file of captions, and compare the pictures with real ones.", needs)
    add = parser.option
    captions_help = ".csv or .tsv with a caption column, or .txt with one a line (needed)"
    add("captions", type=Path, metavar="FILE", help=captions_help)
    reference_help = "a folder of real pictures, or what `evaluate stats` made (needed)"
    add("reference", type=Path, metavar="PLACE", help=reference_help)
    add("inception", type=Path, metavar="FILE", help="weights: pt_inception-2015-12-05-6726825d.pth (needed)")
    add("resize", choices=RESIZES, help="how pictures are resized for it (default: clean)")
    add("clip", type=Path, metavar="FOLDER", help="a CLIP for the CLIP score, as transformers keeps it")
    add("cmmd_clip", type=Path, metavar="FOLDER", help="a CLIP for CMMD; its authors' is clip-vit-large-patch14-336")
    add("cmmd_reference", type=Path, metavar="PLACE", help="the real pictures for CMMD (default: --reference)")
    add("kid_size", type=whole_number, metavar="N", help=f"pictures in a subset of KID (default: {KID_SIZE})")
    add("any_size", action="store_true", help="compare pictures of one size with real ones of another")
    add("seed", type=int, metavar="N", help="what the seeds of captions without one are made of (default: 0)")
    add("shard", metavar="I/N", help="paint and measure only part I of N; score without this when all are painted")
    options = options_of(parser, arguments, required=("captions", "reference", "inception"))

    from kandinsky22.evaluation import captions, manifest, plots, protocol, reference, suite
    from kandinsky22.evaluation.features import ClipFeatures, InceptionFeatures

    plots.check()
    read, out, device = captions.read(options["captions"]), options["out"], device_name(options)
    manifest.check_place(out)
    shard = manifest.Shard.parsed(options["shard"]) if "shard" in options else manifest.WHOLE
    alone = shard.of == 1
    inception = InceptionFeatures(options["inception"], options.get("resize", "clean"), device)
    clips = {name: ClipFeatures.of_folder(options[name], device) for name in ("clip", "cmmd_clip") if name in options}
    clip, cmmd_clip = clips.get("clip"), clips.get("cmmd_clip")
    kid_size, any_size = options.get("kid_size", KID_SIZE), options.get("any_size", False)
    place = options["reference"]
    _check_enough(len(read.items), "captions", inception.dim, kid_size)
    with progress_reporter() as say:  # before hours of painting
        real = suite.real_pictures(place, inception, out, "real-pictures", say, whole=alone)
        _check_enough(real.count, "real pictures", inception.dim, kid_size)
        cmmd = None
        if cmmd_clip and alone:
            cmmd_place = options.get("cmmd_reference", place)
            theirs = suite.statistics_of(cmmd_place, cmmd_clip, out, "real-pictures-for-cmmd", say)
            _, cmmd = theirs.rows, (cmmd_clip, theirs)

    def check(template: Request) -> None:
        if not any_size:
            reference.check_sizes(real.sizes, [(template.height or 0, template.width or 0)])

    model = local_model(options) if alone else None
    asked = {name: options[name] for name in ("seed", "batch", "dtype", "retry") if options.get(name, "auto") != "auto"}
    run = suite.complete(out, read, template_of(options), model=model, **asked) if alone else None
    remarks = [NOT_COMPARED] if run and not model else []
    if run is None:
        least = max(inception.dim + 1, kid_size)
        run = paint_captions(options, read, shard, least=least, check=check, seed=options.get("seed", 0))
    with progress_reporter() as say:
        if not alone or real.statistics is None:
            networks = {"pictures": inception, "pictures-by-clip": clip, "pictures-for-cmmd": cmmd_clip}
            suite.measure_part(run, shard, {name: of for name, of in networks.items() if of}, say)
            print(f"part {shard} is painted; when all are, the same command without --shard writes the report")
            return
        report = suite.coco(
            run,
            place,
            real.statistics,
            inception,
            clip=clip,
            cmmd=cmmd,
            kid_size=kid_size,
            any_size=any_size,
            say=say,
            command=protocol.command(),
            remarks=remarks,
        )
    _written(out, report)


def world(arguments: Sequence[str]) -> None:
    """The picture world: an oracle reads what was painted."""
    parser = parser_of(
        "world", "Paint fresh captions of the small model's world, and read back what the pictures show."
    )
    parser.option("count", type=whole_number, metavar="N", help=f"how many captions (default: {WORLD_COUNT})")
    options = options_of(parser, arguments)

    from kandinsky22.evaluation import manifest, plots, protocol, suite

    plots.check()
    manifest.check_place(options["out"])
    captions, clip = suite.world_captions(options.get("count", WORLD_COUNT)), model_clip(options)
    run = paint_captions(options, captions)
    with progress_reporter() as say:
        report = suite.world(run, clip, say=say, command=protocol.command())
    _written(options["out"], report)


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

    from kandinsky22.evaluation import manifest, plots, protocol
    from kandinsky22.evaluation import sweep as sweeping

    plots.check()
    manifest.check_place(options["out"], of_runs=True)
    folder, scenes, seeds = options["out"], options.get("scenes", sweeping.SCENES), options.get("seeds", sweeping.SEEDS)
    template, clip = template_of(options), model_clip(options)
    cells = sweeping.grid(template, options.get("samplers", sweeping.SAMPLERS), options.get("numbers", sweeping.STEPS))
    with start_pool(options) as painter:

        def carried_out(cells: Mapping[str, Request]) -> list[sweeping.Cell]:
            return _judged(painter, options, cells, clip, scenes, seeds, sweeping.STREAM)

        grid = carried_out(cells)
        chosen = sweeping.best(grid)
        guided = carried_out(sweeping.around(chosen.name, chosen.request))
        final = sweeping.best([chosen, *guided])
        linear = dict(_possible(painter, sweeping.linear(final.name, final.request)))
        beside = carried_out(linear) if linear else []
    names = [cell.name for cell in (*grid, *guided, *beside)]
    kept = sweeping.protocol(folder, names, clip, protocol.command())
    _written(folder, sweeping.report(chosen.request.model, grid, guided, beside, kept))


def dials(arguments: Sequence[str]) -> None:
    """What speeding up costs in the picture world: what speeds are chosen from."""
    parser = parser_of("dials", "Paint the same captions with every combination of what speeds up.", without=SPED_UP_BY)
    add = parser.option
    add("samplers", type=_names, metavar="NAME,...", help="that take fewer steps (default: ddpm,euler,dpmpp_2m)")
    add("numbers", type=_counts, metavar="N,...", help="how many (default: 15,10,5)")
    add("intervals", type=_intervals, metavar="X-X,...", help="that are guided (default: 0-0.8,0.2-0.8)")
    add("reuse", type=_counts, metavar="N,...", help="calls that deeper levels serve (default: 2,3,5)")
    add("only", type=_names, metavar="NAME,...", help="cells to paint beside the exact ones (default: all)")
    add("scenes", type=whole_number, metavar="N", help="captions of a cell (default: 400)")
    add("seeds", type=whole_number, metavar="N", help="pictures of each caption (default: 1)")
    add("stream", type=whole_number, metavar="N", help="which scenes; another number gives others (default: 30)")
    options = options_of(parser, arguments)

    from kandinsky22.evaluation import dials as turning
    from kandinsky22.evaluation import manifest, plots, protocol, sweep

    plots.check()
    manifest.check_place(options["out"], of_runs=True)
    folder, scenes, seeds = options["out"], options.get("scenes", turning.SCENES), options.get("seeds", turning.SEEDS)
    stream = options.get("stream", turning.STREAM)
    without = {name: value for name, value in options.items() if name not in SPED_UP_BY}
    template, model, clip = template_of(without), model_of(without), model_clip(without)
    tried = [
        options.get(name, default)
        for name, default in (
            ("samplers", turning.SAMPLERS_BESIDE),
            ("numbers", turning.STEPS),
            ("intervals", turning.INTERVALS),
            ("reuse", turning.REUSE),
        )
    ]
    named = {name: template_of(without | {"speed": name}) for name in SPEEDS if name != turning.EXACT}
    cells = turning.grid(template, *tried) | named
    if "only" in options:
        cells = turning.exact(template) | _of_names(cells, options["only"])
    with start_pool(without) as painter:
        judged = _judged(painter, without, cells, clip, scenes, seeds, stream)
    with progress_reporter() as say:
        made = turning.tried(folder, judged, model, clip, say)
    kept = sweep.protocol(folder, [cell.name for cell in judged], clip, protocol.command())
    _written(folder, turning.report(template.model, made, kept))


def _judged(
    painter: "Pool",
    options: Mapping[str, Any],
    cells: Mapping[str, Request],
    clip: "ClipFeatures",
    scenes: int,
    seeds: int,
    stream: int,
) -> "list[Cell]":
    """Cells painted, what they will take being said before, and what came of them."""
    from kandinsky22.evaluation import sweep as sweeping

    folder, retry = options["out"], options.get("retry", False)
    about = run_notes(options, linear=any(request.prior.linear for request in cells.values()))
    print(f"{len(cells)} cells; where it is not known yet how long they take, two packs are timed", flush=True)
    print(
        describe_estimate(
            sweeping.expect(painter, folder, cells, scenes, seeds, stream=stream, retry=retry, noted=about)
        ),
        flush=True,
    )
    show_progress(sweeping.paint(painter, folder, cells, scenes, seeds, stream=stream, retry=retry))
    with progress_reporter() as say:
        return sweeping.judge(folder, [*cells], clip, say, seeds, stream=stream)


def _of_names(cells: Mapping[str, Request], names: Sequence[str]) -> dict[str, Request]:
    """The cells of these names. Raises `ValueError` for a name that there is not."""
    if unknown := [name for name in names if name not in cells]:
        raise ValueError(f"there is no cell {unknown[0]}; there are {', '.join(cells)}")
    return {name: cells[name] for name in names}


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
    """Measure real pictures once, or merge what was measured of parts."""
    parser = Parser(
        "kandinsky22 evaluate stats",
        "Measure pictures once, for every evaluation against them; or merge parts of that.",
        usage="kandinsky22 evaluate stats FOLDER ... (--inception FILE | --clip FOLDER) --output FILE.safetensors\n"
        "       kandinsky22 evaluate stats PART.safetensors ... --output FILE.safetensors",
    )
    parser.option("inception", type=Path, metavar="FILE", help="weights of the 2015 Inception, for FID and KID")
    parser.option("clip", type=Path, metavar="FOLDER", help="a CLIP, for CMMD (--cmmd-reference)")
    parser.option("resize", choices=RESIZES, help="how pictures are resized for Inception (default: clean)")
    parser.option("shard", metavar="I/N", help="measure only part I of N, to be merged")
    parser.option("output", short="-o", type=Path, metavar="FILE", help="where the statistics go, .safetensors")
    parser.add_edge("device")
    options, words, _ = parser.parse(arguments)
    places = [*map(Path, words)]
    merging = bool(places) and all(place.suffix == ".safetensors" for place in places)
    one_network = ("inception" in options) != ("clip" in options)
    if not places or "output" not in options or (not merging and not one_network):
        raise ValueError(
            "evaluate stats needs folders, --output, and either --inception or --clip; or .safetensors and --output"
        )
    if options["output"].suffix != ".safetensors":
        raise ValueError("evaluate stats writes a file that ends in .safetensors")
    if merging and (given := [name for name in ("inception", "clip", "resize", "shard") if name in options]):
        raise ValueError(f"statistics are merged as they are; leave out --{given[0]}")
    if "resize" in options and "clip" in options:
        raise ValueError("--resize is for Inception; a CLIP resizes as its own file says")

    from kandinsky22.evaluation import reference

    if merging:
        found = reference.merged(places)
    else:
        features, pictures = _features(options), reference.pictures_in(*places)
        if "shard" in options:
            from kandinsky22.evaluation.manifest import Shard

            pictures = dict(Shard.parsed(options["shard"]).out_of([*pictures.items()]))
            if not pictures:
                raise ValueError(f"part {options['shard']} has no pictures; share them out into fewer parts")
        with progress_reporter() as say:
            found = reference.measure(
                pictures, features, progress=lambda done, of: say("looking at the pictures", done, of)
            )
    reference.save(options["output"], found)
    assert found.by is not None
    print(f"{options['output']}: {found.count:.0f} pictures by {found.by.name}, {found.by.resize}")


def _features(options: Mapping[str, Any]) -> "Features":
    """The network that real pictures are measured by; of Inception, it is said whether it is the published one."""
    from kandinsky22.evaluation import protocol
    from kandinsky22.evaluation.features import ClipFeatures, InceptionFeatures

    device = device_name(options)
    if "clip" in options:
        return ClipFeatures.of_folder(options["clip"], device)
    features = InceptionFeatures(options["inception"], options.get("resize", "clean"), device)
    print(f"Inception's weights are {'' if protocol.published(features) else 'not '}the published file")
    return features


EVALUATIONS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "coco30k": coco30k,
    "world": world,
    "sweep": sweep,
    "dials": dials,
    "stats": stats,
}


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


def _counts(text: str) -> list[int]:
    return [whole_number(part) for part in text.split(",")]


def _intervals(text: str) -> list[tuple[float, ...]]:
    try:
        return [tuple(map(float, part.split("-"))) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no intervals; write them like 0-0.8") from None


def _names(text: str) -> list[str]:
    return text.split(",")
