"""`kandinsky22 train NETWORK`: one network of a model, with progress, metrics, sheets and checkpoints."""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kandinsky22.acceleration import allocator, request_huge_pages
from kandinsky22.checkpoints import catalog, locate
from kandinsky22.imaging.depth import load
from kandinsky22.training import checkpoints, supervisor
from kandinsky22.training.loop import Recipe, refuse_uncut
from kandinsky22.training.model_trainer import Workshop
from kandinsky22.training.options import parser, refuse_what_means_nothing
from kandinsky22.training.photos import Filter
from kandinsky22.training.precompute import Own
from kandinsky22.training.processes import Processes, join
from kandinsky22.training.recipes import BOX, PAINTERS, PUBLISHED, STAGES, ModelRecipe, of_model
from kandinsky22.training.settings import Settings, of_sources, refuse_other
from kandinsky22.training.sources import Source, find

NOTHING = "nothing"  # what a stage begins with that needs no other
ABOUT_DATA = ("min_side", "min_aesthetic", "licence", "depth_model")


def main(arguments: Sequence[str]) -> int | None:
    """Train as the arguments say. Raises `ValueError` and `CheckpointError` for what cannot be done."""
    request_huge_pages()
    made = parser()
    chosen, said = made.parse_args(arguments), made.said(arguments)
    refuse_what_means_nothing(chosen.network, said)
    began = {} if "plan" in chosen else checkpoints.settings(chosen.folder / chosen.network)
    take_what_is_not_said(chosen, said, began)
    refuse_what_is_of_no_use(chosen)
    start = starting(chosen)
    recipe = recipe_of(chosen, start)
    refuse_other(began, settings(chosen, recipe))
    if chosen.network in recipe.runs:
        count = max(chosen.processes, int(os.environ.get("WORLD_SIZE", "1")))
        refuse_uncut(recipe.runs[chosen.network], count, coupled=chosen.network == "clip")
    if "plan" in chosen:
        from kandinsky22.training.planning import say_plan

        pictures = sum(len(find(source.path)[0]) for source in chosen.data) if "data" in chosen else None
        steps = getattr(chosen, "steps", None)
        say_plan(recipe, chosen.network, steps, chosen.processes, chosen.plan, every=chosen.every, pictures=pictures)
        return None
    if supervisor.wanted(chosen.processes, chosen.relaunch):
        return supervisor.supervise(arguments, chosen.folder / chosen.network, chosen.processes, chosen.relaunch)
    torch.set_num_threads(chosen.threads)
    try:
        allocator.keep_freed(train)  # to the end: 1.1-1.4 times faster on a CPU, with the same numbers
        train(chosen, recipe, start, join(getattr(chosen, "device", None)))
    except (ValueError, OSError, FloatingPointError) as error:
        if not supervisor.is_watched():
            raise
        supervisor.leave_word(chosen.folder / chosen.network, error)
        return supervisor.STOPPED
    return None


def refuse_what_is_of_no_use(chosen: argparse.Namespace) -> None:
    """Raises `ValueError` for options that would do nothing, and for what is missing only once all pictures were looked at."""
    if "data" not in chosen:
        for name in ABOUT_DATA:
            if name in chosen:
                raise ValueError(f"--{name.replace('_', '-')} is about pictures of yours: name them with --data")
        if getattr(chosen, "recipe", "") == "fine-tune":
            raise ValueError("--recipe fine-tune learns from pictures of yours: name them with --data")
    if chosen.network == "controlnet" and "data" in chosen and "plan" not in chosen and "depth_model" not in chosen:
        raise ValueError(
            "a decoder that follows hints learns from depth pictures; name what estimates those of yours: --depth-model"
        )


def take_what_is_not_said(chosen: argparse.Namespace, said: Sequence[str], began: Settings) -> None:
    """Let what a run began with hold for what is not said now. Raises `ValueError` for pictures that are no longer there."""
    for name, value in began.items():
        if name not in said and value is not None:
            if name == "data" and isinstance(value, list):
                value = [Source.parsed(text) for text in value]
            setattr(chosen, name, tuple(value) if isinstance(value, list) else value)


def settings(chosen: argparse.Namespace, recipe: ModelRecipe) -> Settings:
    """All that decides what a network learns, whether it is said or follows."""
    if chosen.network not in recipe.runs:
        return {}
    started, allowed = start_of(chosen), filter_of(chosen)
    elsewhere = started is not None and started != catalog.BOX and Path(started).expanduser().is_dir()
    found: dict[str, object] = {
        **recipe.runs[chosen.network].settings,
        "recipe": name_of(chosen),
        "start_from": str(Path(str(started)).expanduser().absolute()) if elsewhere else started,
        "anew": begins_anew(chosen) or None,
        "side": recipe.side,
        "data": of_sources(chosen.data) if "data" in chosen else None,
    }
    if chosen.network in PAINTERS:
        found["predict"] = recipe.decoder_scheduler["prediction_type"]
    if "data" in chosen:
        found |= {
            "min_side": allowed.side,
            "min_aesthetic": allowed.aesthetic,
            "licence": [*allowed.licences],
            "depth_model": getattr(chosen, "depth_model", None),
        }
    return found


def name_of(chosen: argparse.Namespace) -> str:
    """The recipe's."""
    return getattr(chosen, "recipe", "fine-tune" if "data" in chosen else "box")


def start_of(chosen: argparse.Namespace) -> str | None:
    """The model to begin with, as it is called, if there is one."""
    usual = catalog.BOX if "data" in chosen and name_of(chosen) == "fine-tune" else None
    return getattr(chosen, "start_from", usual)


def starting(chosen: argparse.Namespace) -> dict[str, Path]:
    """The parts of the model to begin with. Raises `ValueError` where it is not here."""
    name = start_of(chosen)
    return locate.part_folders(name) if name is not None else {}


def filter_of(chosen: argparse.Namespace) -> Filter:
    """Which pictures are used."""
    stage = STAGES.get(name_of(chosen))
    usual = stage.filter if stage else Filter()
    return Filter(
        side=getattr(chosen, "min_side", usual.side),
        aesthetic=getattr(chosen, "min_aesthetic", usual.aesthetic),
        licences=tuple(getattr(chosen, "licence", usual.licences)),
    )


def recipe_of(chosen: argparse.Namespace, start: Mapping[str, Path]) -> ModelRecipe:
    """The recipe that is named, with the values that are given. Raises `ValueError` where they do not go together."""
    name, network = name_of(chosen), chosen.network
    if name == "fine-tune":
        recipe = of_model(start)
    elif name in STAGES:
        if STAGES[name].network != network:
            raise ValueError(f"--recipe {name} trains the {STAGES[name].network}, not the {network}")
        if not (start or STAGES[name].begins.startswith(NOTHING) or "plan" in chosen):
            raise ValueError(f"--recipe {name} begins with {STAGES[name].begins}: name its model with --start-from")
        recipe = STAGES[name].recipe
    else:
        recipe = BOX if name == "box" else PUBLISHED
        if start and of_model(start).unet.block_out_channels != recipe.unet.block_out_channels:
            raise ValueError(f"--recipe {name} is of another size than {chosen.start_from}; fine-tune it, with --data")
    if name not in ("box", "fine-tune") and "data" not in chosen and "plan" not in chosen:
        raise ValueError(f"--recipe {name} learns from pictures of yours: name them with --data")
    if network == "linear-prior":
        return recipe
    given = {field.name: getattr(chosen, field.name) for field in fields(Recipe) if field.name in chosen}
    runs = {**recipe.runs, network: replace(recipe.runs[network], **given)}
    if "predict" in chosen:
        recipe = replace(recipe, decoder_scheduler={**recipe.decoder_scheduler, "prediction_type": chosen.predict})
    return replace(recipe, runs=runs, side=getattr(chosen, "side", recipe.side))


def begins_anew(chosen: argparse.Namespace) -> bool:
    """Whether the network begins with random weights, whatever the model has: where it is said, or the stage says so."""
    stage = STAGES.get(getattr(chosen, "recipe", ""))
    return "anew" in chosen or (stage is not None and stage.begins.startswith(NOTHING))


def own(chosen: argparse.Namespace) -> Own | None:
    """The pictures that are named, and which of them. Raises `ValueError` where what estimates their depth cannot be used."""
    if "data" not in chosen:
        return None
    model = getattr(chosen, "depth_model", None)
    if model is not None:
        load(model)  # now, and not after all pictures were looked at
    return Own(tuple(chosen.data), filter_of(chosen), model)


def train(chosen: argparse.Namespace, recipe: ModelRecipe, start: Mapping[str, Path], processes: Processes) -> None:
    """Carry it out, showing how far it is."""
    with shown(quiet=not processes.first) as (progress, say):
        workshop = Workshop(
            recipe, chosen.folder, start, own(chosen), processes, say, begins_anew(chosen), settings(chosen, recipe)
        )
        if report := workshop.material(chosen.network).report:
            progress.console.print(report, highlight=False)
        task: TaskID | None = None
        first = 0.0  # the step that this process goes on from
        for line in workshop.train(
            chosen.network,
            steps=getattr(chosen, "steps", None),
            minutes=getattr(chosen, "minutes", None),
            every=chosen.every,
            tensorboard=chosen.tensorboard,
        ):
            if task is None:
                first = line["step"] - 1
                task = progress.add_task(chosen.network, total=None, said="")
            said = f"loss {line['loss']:.4f}"
            progress.update(task, total=line["of"], completed=line["step"], said=said)
            if line["step"] % chosen.every == 0 or line["step"] == line["of"]:  # a held-out set was looked at
                measured = (f"{name} {round(value, 4):g}" for name, value in line.items() if name not in ("step", "of"))
                left = (line["of"] - line["step"]) * line.get("seconds", 0.0) / (line["step"] - first)
                said = f"step {line['step']} of {line['of']}, {spoken(left)} left: {', '.join(measured)}"
                progress.console.print(said, highlight=False)
    if processes.first:
        print(f"the model so far is in {workshop.model}")


def spoken(seconds: float) -> str:
    """A time, as a person says it."""
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}s"
    return f"{seconds:.0f} seconds"


@contextmanager
def shown(*, quiet: bool) -> Iterator[tuple[Progress, Any]]:
    """A bar for each thing that takes long, and what tells it how far that is."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(quiet=quiet), disable=quiet) as progress:

        def say(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, said="")
            progress.update(bars[what], total=of, completed=done)

        yield progress, say
