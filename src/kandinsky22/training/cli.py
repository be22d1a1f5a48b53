"""`kandinsky22 train NETWORK`: one network of a model, with progress, metrics, sheets and checkpoints."""

import argparse
import ctypes
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kandinsky22.checkpoints import catalog
from kandinsky22.depth_estimation import load
from kandinsky22.training import supervisor
from kandinsky22.training.loop import Recipe
from kandinsky22.training.material import Own
from kandinsky22.training.photos import GRAIN, Filter
from kandinsky22.training.processes import Processes, join
from kandinsky22.training.recipes import BOX, NETWORKS, PUBLISHED, STAGES, ModelRecipe, of_model
from kandinsky22.training.run import EVERY
from kandinsky22.training.sources import Source
from kandinsky22.training.workshop import Workshop

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt
RECIPES = ("box", "fine-tune", "published", *STAGES)
NOTHING = "nothing"  # what a stage begins with that needs no other
ABOUT_DATA = ("min_side", "min_aesthetic", "licence", "depth_model")
EPILOG = """a folder of pictures with captions beside them, and a picture by what learnt from them:
  kandinsky22 train decoder --data my-pictures --folder runs/mine
  kandinsky22 "three red circles" --model runs/mine/model"""


def keep_freed_memory() -> None:
    """Ask glibc to keep what large tensors free, instead of returning it page by page: 1.1-1.4 times faster on a CPU,
    with the same numbers. Elsewhere it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 << 20)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and leaves it to the caller to say it."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def share(text: str) -> float:
    """A number from 0 up to, but not, 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1), got {text}")
    return value


def whole(text: str, least: int = 1) -> int:
    """A whole number from `least` up."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} up, got {text}")
    return int(text)


def none_or_more(text: str) -> int:
    """A whole number from 0 up."""
    return whole(text, 0)


def side(text: str) -> int:
    """A side in pixels that a picture may be trained on with."""
    value = whole(text)
    if value % GRAIN:
        below = value // GRAIN * GRAIN
        near = f"{below} or {below + GRAIN}" if below else str(GRAIN)
        raise argparse.ArgumentTypeError(f"must be a multiple of {GRAIN}, got {text}; use {near}")
    return value


def source(text: str) -> Source:
    """A folder or tar, and its weight."""
    try:
        return Source.parsed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parser() -> Parser:
    """The options: one vocabulary for all networks."""
    made = Parser(
        prog="kandinsky22 train", description="Train one network of a model, from nothing or from another's weights.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )  # fmt: skip
    made.add_argument("network", choices=NETWORKS, help="each needs the ones before it; movq and clip need nothing")
    add = made.add_argument
    add("--folder", type=Path, default=Path("runs/box"), help="where the run and its model grow (default: %(default)s)")
    add(
        "--start-from", metavar="MODEL", help="the model to begin with: box, a folder, kandinsky-2.2 (with --data: box)"
    )
    add("--anew", action="store_true", help="begin with random weights, though that model has the network")
    add(
        "--recipe",
        choices=RECIPES,
        metavar="NAME",
        help=f"one of {', '.join(RECIPES)} (default: box; with --data: fine-tune)",
    )
    data = made.add_argument_group("what is learnt from (default: the picture world)")
    data.add_argument(
        "--data", action="append", type=source, metavar="PATH[:WEIGHT]",
        help="a folder of pictures with captions, or a tar of img2dataset; may be given more than once",
    )  # fmt: skip
    data.add_argument(
        "--side", type=side, help="of square pictures, in pixels; others have as many pixels (default: the model's)"
    )
    data.add_argument("--min-side", type=whole, help="pass over pictures whose shorter side is less")
    data.add_argument(
        "--min-aesthetic", type=float, metavar="SCORE", help="pass over pictures with a lower score, or none"
    )
    data.add_argument(
        "--licence", action="append", metavar="NAME", help="pass over pictures with another; may be repeated"
    )
    data.add_argument(
        "--depth-model", metavar="NAME", help="what estimates depth, for controlnet: a checkpoint or its folder"
    )
    how = made.add_argument_group("how it learns (default: as the recipe says)")
    length = how.add_mutually_exclusive_group()
    length.add_argument("--steps", type=whole, help="how many steps")
    length.add_argument("--minutes", type=positive, help="time a few steps, then fix how many fit in this")
    how.add_argument("--batch", type=whole, help="rows a step, over all processes")
    how.add_argument("--accumulate", type=whole, metavar="N", help="compute a batch in N parts, for less memory")
    how.add_argument(
        "--checkpointing", action=argparse.BooleanOptionalAction, help="compute activations again, for less memory"
    )
    how.add_argument("--learning-rate", type=positive, metavar="RATE", help="the highest")
    how.add_argument("--warmup", type=none_or_more, metavar="STEPS", help="until the rate is highest")
    how.add_argument("--decay", action=argparse.BooleanOptionalAction, help="whether the rate then falls, as a cosine")
    how.add_argument("--ema-decay", type=share, metavar="SHARE", help="of the averaged weights, which are what is kept")
    how.add_argument(
        "--untold", type=share, metavar="SHARE", help="of rows that learn without their condition, for guidance"
    )
    how.add_argument("--min-snr", type=positive, metavar="GAMMA", help="weigh timesteps by their signal, at most this")
    how.add_argument(
        "--predict", choices=("epsilon", "v_prediction"), help="what a new decoder is asked for (default: epsilon)"
    )
    how.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, help="of matrix products, where there are instructions"
    )
    how.add_argument("--seed", type=none_or_more, help="of all that is random")
    where = made.add_argument_group("where, and what is said")
    where.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    where.add_argument("--threads", type=whole, default=1, help="of a CPU, for each process (default: %(default)s)")
    where.add_argument(
        "--processes", type=whole, default=1, metavar="N", help="on this machine; elsewhere, start torchrun yourself"
    )
    where.add_argument(
        "--relaunch", type=none_or_more, default=0, metavar="TIMES", help="go on from the last checkpoint after a crash"
    )
    where.add_argument(
        "--every",
        type=whole,
        default=EVERY,
        metavar="STEPS",
        help="between checkpoints and sheets (default: %(default)s)",
    )
    where.add_argument(
        "--tensorboard", action="store_true", default=False, help="write its event files, too (extra: train)"
    )
    where.add_argument(
        "--plan", nargs="?", const="", metavar="GPU", help="only say what memory and time it would take, and stop"
    )
    return made


def main(arguments: Sequence[str]) -> int | None:
    """Train as the arguments say. Raises `ValueError` and `CheckpointError` for what cannot be done."""
    chosen = parser().parse_args(arguments)
    refuse_what_is_of_no_use(chosen)
    start = starting(chosen)
    recipe = recipe_of(chosen, start)
    if "plan" in chosen:
        from kandinsky22.training.planning import say_plan

        say_plan(recipe, chosen.network, chosen.steps if "steps" in chosen else None, chosen.processes, chosen.plan)
        return None
    if supervisor.wanted(chosen.processes, chosen.relaunch):
        return supervisor.supervise(arguments, chosen.folder / chosen.network, chosen.processes, chosen.relaunch)
    keep_freed_memory()
    torch.set_num_threads(chosen.threads)
    try:
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
    if chosen.network == "linear-prior":
        for name in (*(field.name for field in fields(Recipe)), "steps", "minutes"):
            if name in chosen:
                raise ValueError(f"the linear prior is fitted in one pass; leave --{name.replace('_', '-')} out")
    if chosen.network == "controlnet" and "data" in chosen and "plan" not in chosen and "depth_model" not in chosen:
        raise ValueError(
            "a decoder that follows hints learns from depth pictures; name what estimates those of yours: --depth-model"
        )


def starting(chosen: argparse.Namespace) -> dict[str, Path]:
    """The parts of the model to begin with. Raises `ValueError` where it is not here."""
    if "start_from" in chosen:
        return catalog.parts(chosen.start_from)
    return (
        catalog.parts(catalog.BOX) if "data" in chosen and getattr(chosen, "recipe", "fine-tune") == "fine-tune" else {}
    )


def recipe_of(chosen: argparse.Namespace, start: Mapping[str, Path]) -> ModelRecipe:
    """The recipe that is named, with the values that are given. Raises `ValueError` where they do not go together."""
    name, network = getattr(chosen, "recipe", "fine-tune" if "data" in chosen else "box"), chosen.network
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
    stage = STAGES.get(getattr(chosen, "recipe", ""))
    usual = stage.filter if stage else Filter()
    if "data" not in chosen:
        return None
    wanted = Filter(
        side=getattr(chosen, "min_side", usual.side),
        aesthetic=getattr(chosen, "min_aesthetic", usual.aesthetic),
        licences=tuple(getattr(chosen, "licence", usual.licences)),
    )
    model = getattr(chosen, "depth_model", None)
    if model is not None:
        load(model)  # now, and not after all pictures were looked at
    return Own(tuple(chosen.data), wanted, model)


def train(chosen: argparse.Namespace, recipe: ModelRecipe, start: Mapping[str, Path], processes: Processes) -> None:
    """Carry it out, showing how far it is."""
    with shown(quiet=not processes.first) as (progress, say):
        workshop = Workshop(recipe, chosen.folder, start, own(chosen), processes, say, begins_anew(chosen))
        if report := workshop.material(chosen.network).report:
            progress.console.print(report, highlight=False)
        task: TaskID | None = None
        for line in workshop.train(
            chosen.network, steps=getattr(chosen, "steps", None), minutes=getattr(chosen, "minutes", None),
            every=chosen.every, tensorboard=chosen.tensorboard,
        ):  # fmt: skip
            if task is None:
                task = progress.add_task(chosen.network, total=None, said="")
            said = f"loss {line['loss']:.4f}"
            progress.update(task, total=line["of"], completed=line["step"], said=said)
            if line["step"] % chosen.every == 0 or line["step"] == line["of"]:  # a held-out set was looked at
                measured = (f"{name} {round(value, 4):g}" for name, value in line.items() if name not in ("step", "of"))
                said = f"step {line['step']} of {line['of']}: {', '.join(measured)}"
                progress.console.print(said, highlight=False)
    if processes.first:
        print(f"the model so far is in {workshop.model}")


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
