"""The options of `kandinsky22 train`: one vocabulary for all networks, and which of them each means something to."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from kandinsky22.training.photos import GRAIN
from kandinsky22.training.recipes import NETWORKS, STAGES, UNETS
from kandinsky22.training.run import EVERY
from kandinsky22.training.sources import Source

RECIPES = ("box", "fine-tune", "published", *STAGES)
EPILOG = """a folder of pictures with captions beside them, and a picture by what learnt from them:
  kandinsky22 train decoder --data my-pictures --folder runs/mine
  kandinsky22 "three red circles" --model runs/mine/model"""

STEPPING = tuple(network for network in NETWORKS if network != "linear-prior")
MEANT_FOR: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(
        (
            "steps",
            "minutes",
            "batch",
            "checkpointing",
            "learning_rate",
            "warmup",
            "decay",
            "ema_decay",
            "bfloat16",
            "seed",
            "processes",
            "relaunch",
            "every",
            "tensorboard",
            "plan",
        ),
        STEPPING,
    ),
    "anew": [network for network in STEPPING if network != "movq-decoder"],
    "accumulate": [network for network in STEPPING if network != "clip"],
    "untold": ("prior", *UNETS),
    "min_snr": ("prior", *UNETS),
    "predict": (*UNETS,),
    "depth_model": ("controlnet",),
}
"""The networks that an option means something to; one that is not here means something to all."""


def refuse_what_means_nothing(network: str, said: Sequence[str]) -> None:
    """Raises `ValueError` for an option that was said, and that `network` has no use for."""
    for name in said:
        meant = MEANT_FOR.get(name, NETWORKS)
        if network not in meant:
            others = f"all but {', '.join(other for other in NETWORKS if other not in meant)}"
            whom = others if len(meant) > len(NETWORKS) / 2 else ", ".join(meant)
            raise ValueError(f"--{name.replace('_', '-')} means nothing to {network}, and is for {whom}; leave it out")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and leaves it to the caller to say it."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")

    def said(self, arguments: Sequence[str]) -> list[str]:
        """The names of what arguments say, and not of what has a value without being said."""
        usual = [action.default for action in self._actions]
        for action in self._actions:
            action.default = argparse.SUPPRESS
        names = [*vars(self.parse_args(arguments))]
        for action, default in zip(self._actions, usual, strict=True):
            action.default = default
        return names


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
        prog="kandinsky22 train",
        description="Train one network of a model, from nothing or from another's weights.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
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
        "--data",
        action="append",
        type=source,
        metavar="PATH[:WEIGHT]",
        help="a folder of pictures with captions, or a tar of img2dataset; may be given more than once",
    )
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
