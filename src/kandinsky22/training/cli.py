"""`kandinsky22 train NETWORK`: trains a network of a model, with metrics, sample grids and checkpoints."""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeRemainingColumn
from rich.progress import Progress as ProgressBars
from rich.text import Text

from kandinsky22.acceleration import allocator, request_huge_pages
from kandinsky22.checkpoints import catalog, locate
from kandinsky22.compositions.things import Things
from kandinsky22.console import ProgressLines, echo, printable, text_column
from kandinsky22.files import expand
from kandinsky22.imaging import depth
from kandinsky22.models.config import has_type
from kandinsky22.training import checkpoints, lora, run, supervisor
from kandinsky22.training.data import Progress, no_progress
from kandinsky22.training.loop import Recipe, check_batch_split
from kandinsky22.training.model_recipe import ModelRecipe
from kandinsky22.training.model_trainer import ModelTrainer
from kandinsky22.training.options import (
    APPLIES_TO,
    export_parser,
    lora_config,
    lora_settings,
    parser,
    refuse_inapplicable,
    refuse_without_lora,
    world_share,
)
from kandinsky22.training.photos import Filter
from kandinsky22.training.precompute import THINGS, DatasetConfig
from kandinsky22.training.processes import ALONE, Processes, join
from kandinsky22.training.recipes import BOX, PUBLISHED, STAGES, of_model
from kandinsky22.training.registry import ITERATIVE
from kandinsky22.training.settings import Settings, of_sources, refuse_changes, with_current_names
from kandinsky22.training.sources import HINT, Source, find_pictures

NOTHING = "nothing"  # the beginning of a stage's `begins` if it needs no base model
MIXED_PICTURES = 4096  # of the picture world, mixed with the user's
DATA_OPTIONS = ("mix", "new_tokenizer", "min_side", "min_aesthetic", "licence", "depth_model")  # that need --data

STORED_TYPES: Mapping[str, Any] = {
    **get_type_hints(Recipe),
    "recipe": str,
    "start_from": str,
    "from_scratch": bool,
    "new_tokenizer": int,
    "side": int,
    "data": tuple[str, ...],
    "predict": str,
    "min_side": int,
    "min_aesthetic": float,
    "licence": tuple[str, ...],
    "depth_model": str,
    "mix": str,
    "lora": int,
    "alpha": float,
    "dora": bool,
    "targets": tuple[str, ...],
}
"""The settings of a checkpoint that complete the options, and their types."""


def main(arguments: Sequence[str]) -> int | None:
    """Train as the arguments say, and return an exit status. Raises `ValueError`, `CheckpointError` and `OSError`."""
    if arguments[:1] == ["export"]:
        export(arguments[1:])
        return None
    request_huge_pages()
    args, recipe, base = configure(arguments)
    if "plan" in args:
        from kandinsky22.training.network_plans import print_plan

        pictures = sum(len(find_pictures(source.path).pictures) for source in args.data) if "data" in args else None
        steps = getattr(args, "steps", None)
        config = lora_config(args)
        print_plan(recipe, args.network, steps, args.processes, args.plan, config, every=args.every, pictures=pictures)
        return None
    folder = args.folder / args.network
    if args.backend == "ray":
        supervisor.launch_on_ray(arguments, folder, args)
        return None
    if getattr(args, "address", None) is not None:
        raise ValueError("--address is of a Ray cluster; add --backend ray")
    if supervisor.is_needed(args.processes, args.relaunch):
        try:
            return supervisor.supervise(arguments, folder, args.processes, args.relaunch)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(how_to_go_on(folder)) from None
    torch.set_num_threads(args.threads)
    try:
        allocator.keep_freed(train)  # to the end: 1.1-1.4 times faster on a CPU, with the same numbers
        train(args, recipe, base, join(getattr(args, "device", None)))
    except (ValueError, OSError, FloatingPointError) as error:
        if not supervisor.is_supervised():
            raise
        supervisor.write_stop_reason(folder, error)
        return supervisor.STOPPED
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_go_on(folder)) from None
    return None


def export(arguments: Sequence[str]) -> None:
    """Add a network to its model as it was at a checkpoint. Raises `ValueError`, `CheckpointError` and `OSError`."""
    given = export_parser().parse_args(arguments)
    folder = run_folder(given.folder)
    args, recipe, base = configure([folder.name, "--folder", str(folder.parent)])
    with progress_bars(quiet=False) as (_, progress):
        trainer = model_trainer(args, recipe, base, ALONE, progress)
        step = trainer.export(folder.name, given.step, best=given.best)
    which = "with its best validation loss" if step is None else f"of step {step}"
    echo(f"{trainer.model.path} has the {folder.name} {which}")


def run_folder(folder: Path) -> Path:
    """The folder of a network's run: this one, or the only one in it. Raises `ValueError` if there is none."""
    folder = expand(folder)
    if folder.name in ITERATIVE and checkpoints.steps(folder):
        return folder
    found = [folder / name for name in ITERATIVE if checkpoints.steps(folder / name)]
    if len(found) != 1:
        names = f"it has {', '.join(path.name for path in found)}" if found else "it has no checkpoints"
        raise ValueError(f"{folder} is not the folder of a network's run, and {names}; give one, as {folder}/decoder")
    return found[0]


def model_trainer(
    args: argparse.Namespace,
    recipe: ModelRecipe,
    base: Mapping[str, Path],
    processes: Processes,
    progress: Progress = no_progress,
) -> ModelTrainer:
    """The trainer that the options describe."""
    return ModelTrainer(
        recipe,
        args.folder,
        base,
        dataset_config(args),
        processes,
        progress,
        is_from_scratch(args),
        settings(args, recipe),
        getattr(args, "new_tokenizer", 0),
        lora_config(args),
    )


def how_to_go_on(folder: Path) -> str:
    """What to say when a run is stopped by its user."""
    steps = checkpoints.steps(folder)
    if not steps:
        return "stopped before the first checkpoint; the same command begins again, with what was prepared"
    return f"stopped; the last checkpoint is that of step {steps[-1]}, from which the same command goes on"


def configure(arguments: Sequence[str]) -> tuple[argparse.Namespace, ModelRecipe, dict[str, Path]]:
    """The options, completed with those of the run's last checkpoint, the recipe, and the parts of the base model.

    Checks all that can be checked before a picture or a network is read. Raises `ValueError` and `CheckpointError`.
    """
    option_parser = parser()
    args, given = option_parser.parse_args(arguments), option_parser.given(arguments)
    refuse_inapplicable(args.network, given)
    folder = args.folder / args.network
    stored = {} if "plan" in args else with_current_names(checkpoints.settings(folder))
    complete_from_checkpoint(args, given, stored)
    refuse_incomplete(args)
    base = base_parts(args)
    recipe = with_world(recipe_of(args, base), args, stored)
    refuse_changes(stored, settings(args, recipe))
    if args.network in ITERATIVE:
        count = max(args.processes, int(os.environ.get("WORLD_SIZE", "1")))
        check_batch_split(recipe.runs[args.network], count, coupled=ITERATIVE[args.network].coupled)
    return args, recipe, base


def complete_from_checkpoint(args: argparse.Namespace, given: Sequence[str], stored: Settings) -> None:
    """Set options that are not given to those of the checkpoint.

    Raises `ValueError` for pictures that do not exist, and for values that are none of the option.
    """
    for name, value in stored.items():
        if name not in given and name in STORED_TYPES and value is not None:
            values: Any = tuple(value) if isinstance(value, list) else value
            if not has_type(values, STORED_TYPES[name]):
                raise ValueError(
                    f"the last checkpoint in {args.folder / args.network} has {name} {value!r:.100}, which it cannot "
                    "have; remove it to resume from an earlier one"
                )
            setattr(args, name, tuple(map(Source.parse, values)) if name == "data" else values)


def refuse_incomplete(args: argparse.Namespace) -> None:
    """Raises `ValueError` for options that need another one which is missing."""
    if "data" not in args:
        for name in DATA_OPTIONS:
            if name in args:
                raise ValueError(f"--{name.replace('_', '-')} is about pictures of yours: name them with --data")
        if getattr(args, "recipe", "") == "fine-tune":
            raise ValueError("--recipe fine-tune learns from pictures of yours: name them with --data")
    refuse_without_lora(args)
    if "lora" in args and "plan" not in args and (base_name(args) is None or is_from_scratch(args)):
        raise ValueError("--lora adapts a network that is trained: name its model with --start-from")
    needs_hints = args.network in APPLIES_TO["depth_model"] and "data" in args and "depth_model" not in args
    if needs_hints and "plan" not in args and not any(map(has_hints, args.data)):
        raise ValueError(
            "a decoder that follows hints learns from depth pictures; name what estimates those of yours: "
            "--depth-model, or put control pictures of your own beside them, as NAME.hint.png"
        )


def has_hints(source: Source) -> bool:
    """Whether a picture of a source has a control picture."""
    return any(HINT in picture.sidecars for picture in find_pictures(source.path).pictures)


def settings(args: argparse.Namespace, recipe: ModelRecipe) -> Settings:
    """All options that decide what a network learns, given or not; checkpoints store them."""
    if args.network not in ITERATIVE:
        return {}
    base, filter = base_name(args), filter_of(args)
    is_folder = base is not None and base != catalog.BOX and expand(base).is_dir()
    result: dict[str, object] = {
        **recipe.runs[args.network].settings,
        "recipe": recipe_name(args),
        "start_from": str(expand(str(base)).absolute()) if is_folder else base,
        "from_scratch": is_from_scratch(args) or None,
        "new_tokenizer": getattr(args, "new_tokenizer", None),
        "side": recipe.side,
        "data": of_sources(args.data) if "data" in args else None,
    }
    if args.network in APPLIES_TO["lora"]:
        result |= lora_settings(args)
    if args.network in APPLIES_TO["predict"]:
        result["predict"] = recipe.decoder_scheduler["prediction_type"]
    if "data" in args:
        result |= {
            "min_side": filter.side,
            "min_aesthetic": filter.aesthetic,
            "licence": [*filter.licences],
            "depth_model": getattr(args, "depth_model", None),
            "mix": getattr(args, "mix", None),
        }
    if "data" not in args or "mix" in args:
        result["things"] = recipe.things > 0
    return result


def recipe_name(args: argparse.Namespace) -> str:
    """The name of the recipe."""
    return getattr(args, "recipe", "fine-tune" if "data" in args else "box")


def base_name(args: argparse.Namespace) -> str | None:
    """The name or folder of the base model, if there is one."""
    default = catalog.BOX if "data" in args and recipe_name(args) == "fine-tune" else None
    return getattr(args, "start_from", default)


def base_parts(args: argparse.Namespace) -> dict[str, Path]:
    """The parts of the base model. Raises `ValueError` if it is not on this machine."""
    name = base_name(args)
    return locate.part_folders(name) if name is not None else {}


def filter_of(args: argparse.Namespace) -> Filter:
    """Which pictures are used."""
    stage = STAGES.get(recipe_name(args))
    default = stage.filter if stage else Filter()
    return Filter(
        side=getattr(args, "min_side", default.side),
        aesthetic=getattr(args, "min_aesthetic", default.aesthetic),
        licences=tuple(getattr(args, "licence", default.licences)),
    )


def recipe_of(args: argparse.Namespace, base: Mapping[str, Path]) -> ModelRecipe:
    """The named recipe with the values given as options. Raises `ValueError` if they do not go together."""
    name, network = recipe_name(args), args.network
    if name == "fine-tune":
        recipe = of_model(base)
    elif name in STAGES:
        if STAGES[name].network != network:
            raise ValueError(f"--recipe {name} trains the {STAGES[name].network}, not the {network}")
        if not (base or STAGES[name].begins.startswith(NOTHING) or "plan" in args):
            raise ValueError(f"--recipe {name} begins with {STAGES[name].begins}: name its model with --start-from")
        recipe = STAGES[name].recipe
    else:
        recipe = BOX if name == "box" else PUBLISHED
        if base and of_model(base).unet.block_out_channels != recipe.unet.block_out_channels:
            raise ValueError(f"--recipe {name} is of another size than {args.start_from}; fine-tune it, with --data")
    if name not in ("box", "fine-tune") and "data" not in args and "plan" not in args:
        raise ValueError(f"--recipe {name} learns from pictures of yours: name them with --data")
    if "mix" in args:
        recipe = replace(recipe, pictures=MIXED_PICTURES, hints=MIXED_PICTURES, things=BOX.things)
    if "lora" in args and "learning_rate" not in args:
        args.learning_rate = lora.LEARNING_RATE * recipe.runs[network].learning_rate
    given = {field.name: getattr(args, field.name) for field in fields(Recipe) if field.name in args}
    runs = {name: replace(run, **given) if name == network else run for name, run in recipe.runs.items()}
    if "predict" in args:
        recipe = replace(recipe, decoder_scheduler={**recipe.decoder_scheduler, "prediction_type": args.predict})
    side = getattr(args, "side", recipe.side)  # also what the model paints by default
    return replace(recipe, runs=runs, side=side, unet=replace(recipe.unet, sample_size=side // recipe.movq.factor))


def missing_things(folder: Path) -> str:
    """That a training folder has no things, and how to download them; empty if it has them."""
    try:
        Things.load(folder / THINGS)
    except FileNotFoundError as error:
        return str(error)
    return ""


def with_world(recipe: ModelRecipe, args: argparse.Namespace, stored: Settings) -> ModelRecipe:
    """The recipe, without things in the picture world if the folder has none, or if the run began without them.

    `stored` are the settings of the run's last checkpoint. Raises `ValueError` if its things are missing now.
    """
    if ("data" in args and "mix" not in args) or not recipe.things or "plan" in args:
        return recipe
    missing = missing_things(args.folder)
    if not stored:
        return replace(recipe, things=0.0) if missing else recipe
    if not stored.get("things", True):  # earlier versions always trained with things, and did not store it
        return replace(recipe, things=0.0)
    if missing:
        raise ValueError(f"this run was started on pictures with things, and {missing}; or use another --folder")
    return recipe


def is_from_scratch(args: argparse.Namespace) -> bool:
    """Whether the network starts from random weights even if the base model has it: by option, or in this stage."""
    stage = STAGES.get(getattr(args, "recipe", ""))
    return "from_scratch" in args or (stage is not None and stage.begins.startswith(NOTHING))


def dataset_config(args: argparse.Namespace) -> DatasetConfig | None:
    """The user's pictures, if any are given. Raises `ValueError` if their depth model cannot be loaded."""
    if "data" not in args:
        return None
    depth_model = getattr(args, "depth_model", None)
    if depth_model is not None:
        depth.load(depth_model)  # to fail now rather than after all pictures are checked
    return DatasetConfig(tuple(args.data), filter_of(args), depth_model, world_share(getattr(args, "mix", "")))


def train(args: argparse.Namespace, recipe: ModelRecipe, base: Mapping[str, Path], processes: Processes) -> None:
    """Train the network, showing progress bars, and print metrics whenever they are validated."""
    with progress_bars(quiet=not processes.first) as (bars, progress):

        def print_line(text: object) -> None:
            bars.console.print(Text(printable(str(text))), soft_wrap=True)

        trainer = model_trainer(args, recipe, base, processes, progress)
        if ("data" not in args or "mix" in args) and not recipe.things:
            reason = missing_things(args.folder) or "this run was started without things"
            print_line(f"training on the world of shapes alone, without things: {reason}")
        for notice in trainer.notices(args.network):
            print_line(notice)
        task: TaskID | None = None
        lines, first = ProgressLines(), 0  # the step that this process resumes from
        for metrics in trainer.train(
            args.network,
            steps=getattr(args, "steps", None),
            minutes=getattr(args, "minutes", None),
            more=getattr(args, "more", None),
            finish=getattr(args, "finish", False),
            samples=getattr(args, "sample", ()),
            every=args.every,
            tensorboard=args.tensorboard,
        ):
            if task is None:
                first = metrics.step - 1
                if first == 0 and (start := described_start(args.folder / args.network)):
                    print_line(start)
                task = bars.add_task(args.network, total=None, status="")
            bars.update(task, total=metrics.steps, completed=metrics.step, status=f"loss {metrics.loss:.4f}")
            if processes.first and not bars.console.is_terminal:
                lines.show("steps", metrics.step - first, metrics.steps - first)
            if metrics.step % args.every == 0 or metrics.step == metrics.steps:
                values = ", ".join(f"{name} {round(value, 4):g}" for name, value in metrics.values.items())
                seconds = metrics.speed.seconds if metrics.speed else 0.0
                left = duration((metrics.steps - metrics.step) * seconds / (metrics.step - first))
                text = f"step {metrics.step} of {metrics.steps}, {left} left: {values}"
                print_line(text)
    if processes.first:
        if task is None:
            steps = checkpoints.last_state(args.folder / args.network)["steps"]
            echo(f"this run is complete, with {steps} steps; --more N trains it for N more")
        model, file = trainer.model.path, trainer.lora_file(args.network)
        echo(f"the model so far is in {model}" if trainer.lora is None else f"the LoRA is in {file}")


def described_start(folder: Path) -> str:
    """The validation before the first step; empty if there was none."""
    start = next(iter(run.read_metrics(folder)), {"step": 1})
    values = [f"{name} {round(value, 4):g}" for name, value in start.items() if name not in ("step", "of")]
    return f"before the first step: {', '.join(values)}" if start["step"] == 0 else ""


def duration(seconds: float) -> str:
    """A time in its largest fitting unit."""
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}s"
    return f"{seconds:.0f} seconds"


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[tuple[ProgressBars, Progress]]:
    """Progress bars on the terminal, and a function that shows the progress of a named task there."""
    columns = (
        text_column("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        text_column("{task.fields[status]}"),
    )
    tasks: dict[str, TaskID] = {}
    lines = ProgressLines()
    with ProgressBars(*columns, console=Console(quiet=quiet), disable=quiet) as bars:

        def show(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, status="")
            bars.update(tasks[task], total=total, completed=done)
            if not quiet and not bars.console.is_terminal:
                lines.show(task, done, total)

        yield bars, show
