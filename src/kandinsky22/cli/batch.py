"""`kandinsky22 batch`: paints a file of requests in fixed work units, as evaluation does, so that it can be resumed."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.checkpoints import catalog
from kandinsky22.cli.evaluation_options import PAINT_OPTIONS, add_paint_options, shard_of, start_painter
from kandinsky22.cli.evaluation_progress import describe_estimate, show_progress
from kandinsky22.cli.options import Parser
from kandinsky22.console import echo
from kandinsky22.files import expand, open_regular
from kandinsky22.request import Request

if TYPE_CHECKING:
    from kandinsky22.backends.run_painting import RunProgress
    from kandinsky22.backends.work_units import UnitPainter
    from kandinsky22.cli.request_file import RequestFile

FAILED = 1  # exit status: a line of the file was not painted
EXAMPLE = """example, of a file prompts.jsonl with
  "three red circles"
  {"prompt": "a blue star", "seed": 7, "num_images": 2, "name": "star"}
  {"task": "img2img", "prompt": "a yellow star", "image": "circle.png", "strength": 0.5}

  kandinsky22 batch prompts.jsonl --output pictures"""


def main(arguments: Sequence[str]) -> int:
    """Paint what is left of a file of requests; returns 1 if any line failed."""
    options, path = _parse(arguments)
    shard_of(options)  # raises for a bad one
    file, settings = _read(path, options)
    count = len(file)
    needed = _needed(file, options.get("model", catalog.BOX))
    failures: dict[int, str] = {}
    if file.lines:
        with start_painter(options, needed) as painter:
            file.change(painter.backend.resolve)
            _print_errors(path, file.errors)
            if file.lines:
                failures = _paint(file, settings, painter, options)
    else:
        _print_errors(path, file.errors)
    _print_errors(path, failures)
    failed = len(file.errors) + len(failures)
    if failed:
        echo(f"{failed} of {count} lines failed", error=True)
    return FAILED if failed else 0


def _parse(arguments: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """The options, and the path of the file."""
    parser = Parser(
        "kandinsky22 batch",
        "Paint a file of requests: docs/batch.md. Options of the pictures are for lines that do not give them.",
        usage="kandinsky22 batch FILE --output DIR [options]",
        epilog=EXAMPLE,
    )
    output_help = "folder for the pictures; an existing one is resumed (required)"
    parser.option("output", short="-o", type=Path, metavar="DIR", help=output_help)
    parser.option("seed", type=int, metavar="N", help="from which seeds of lines without one are derived (default: 0)")
    parser.option("shard", metavar="I/N", help="paint only shard I of N, for jobs that share the folder")
    add_paint_options(parser, "lines")
    parser.option("quiet", short="-q", action="store_true", help="print nothing but what failed")
    options, words, _ = parser.parse(arguments)
    if len(words) != 1:
        raise ValueError(f"{parser.prog} takes one file of requests, got {len(words)}; see {parser.prog} --help")
    if "output" not in options:
        raise ValueError(f"{parser.prog} needs --output, the folder for the pictures")
    return {**options, "output": expand(options["output"])}, expand(words[0])


def _read(path: Path, options: Mapping[str, Any]) -> tuple["RequestFile", dict[str, Any]]:
    """The requests of the file, and the settings of the run that follow from it and from the command line."""
    from kandinsky22.cli import request_file
    from kandinsky22.evaluation import captions

    try:
        with open_regular(path) as opened:
            data = opened.read()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    defaults = {name: options[name] for name in PAINT_OPTIONS if name in options}
    if "size" in options:
        if "height" in options or "width" in options:
            raise ValueError("--size sets both --height and --width; leave those out")
        defaults["width"], defaults["height"] = options["size"]
    seed = options.get("seed", 0)
    file = request_file.read(path, captions.decode(path, data), defaults, seed)
    if not len(file):
        raise ValueError(f"{path} holds no requests; write one per line")
    defaults.pop("model", None)  # the weights identify it
    return file, {"file": {"sha256": hashlib.sha256(data).hexdigest()}, "defaults": defaults, "seed": seed}


def _needed(file: "RequestFile", model: str) -> list[Request]:
    """Requests that together need all the parts of a published model that the file needs; of others, any request.

    What a published model has no parts for becomes an error of its line.
    """
    if not catalog.is_remote(model):
        return [line.request for line in file.lines[:1]]
    from kandinsky22.engine.requirements import model_parts

    needed: dict[tuple[str, ...], Request] = {}

    def note(request: Request) -> Request:
        needed[tuple(model_parts(model, request))] = request
        return request

    file.change(note)
    return [*needed.values()]


def _paint(
    file: "RequestFile", settings: Mapping[str, Any], painter: "UnitPainter", options: Mapping[str, Any]
) -> dict[int, str]:
    """Paint a shard of the resolved requests, with its progress and a summary; returns the errors by line number."""
    from kandinsky22.backends.estimate import estimate
    from kandinsky22.backends.run_painting import paint
    from kandinsky22.backends.run_state import failed
    from kandinsky22.cli.batch_run import BatchRun

    shard, retry, quiet = shard_of(options), options.get("retry", False), options.get("quiet", False)
    run = BatchRun.of(options["output"], file.lines, painter, settings).open_or_create()
    reports: list[RunProgress] = []

    def updates() -> "Iterator[tuple[str, RunProgress]]":
        for progress in paint(painter, run, shard=shard, retry=retry):
            reports[1:] = [progress]  # the first and the last
            yield run.folder.name, progress

    start = time.monotonic()
    if quiet:
        for _ in updates():
            pass
    else:
        echo(describe_estimate(estimate(run, shard, processes=painter.processes, retry=retry)))
        show_progress(updates())
        first, last = reports[0], reports[-1]
        seconds = time.monotonic() - start
        now = f"{last.done - first.done} of them painted now, in {seconds:.1f} s"
        echo(f"{last.done} of {last.total} pictures are in {run.folder}; {now}")
    errors, ours = failed(run), {item.id: item.number for unit in run.units(shard) for item in unit}
    return {number: errors[name]["error"] for name, number in ours.items() if name in errors}


def _print_errors(path: Path, errors: Mapping[int, str]) -> None:
    for number, error in sorted(errors.items()):
        echo(f"{path.name}, line {number}: {error}", error=True)
