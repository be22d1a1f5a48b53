"""The options of `kandinsky22 train`, shared by all networks, and which networks each of them applies to."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from kandinsky22.training.lora import TARGETS, LoRAConfig
from kandinsky22.training.photos import GRAIN
from kandinsky22.training.recipes import STAGES
from kandinsky22.training.registry import ITERATIVE, NETWORK_TRAINING
from kandinsky22.training.run import EVERY
from kandinsky22.training.sources import Source

VOCABULARY, MIN_VOCABULARY = 4096, 514  # tokens; the least are all bytes, within a word and at its end, and two more
WORLD = "world:"
RECIPES = ("box", "fine-tune", "published", *STAGES)
EPILOG = """a folder of pictures with captions beside them, and a picture by what was trained on them:
  kandinsky22 train decoder --data my-pictures --folder runs/mine
  kandinsky22 "three red circles" --model runs/mine/model
the network as it was at a checkpoint, or at its best:
  kandinsky22 train export runs/mine/decoder --best"""

LORA_OPTIONS = ("lora", "alpha", "dora", "targets")
APPLIES_TO: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(
        (
            "steps",
            "minutes",
            "more",
            "finish",
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
            "backend",
            "address",
            "every",
            "sample",
            "tensorboard",
            "plan",
        ),
        tuple(ITERATIVE),
    ),
    **dict.fromkeys(LORA_OPTIONS, ("prior", "decoder", "inpaint", "controlnet")),
    "accumulate": [name for name, entry in ITERATIVE.items() if not entry.coupled],
    **{
        option: [name for name, entry in ITERATIVE.items() if option in entry.options]
        for option in ("from_scratch", "new_tokenizer", "cond_dropout", "min_snr", "predict", "depth_model")
    },
}
"""The networks that an option applies to; an option that is not here applies to all."""


def refuse_inapplicable(network: str, given: Sequence[str]) -> None:
    """Raises `ValueError` for a given option that does not apply to `network`."""
    for name in given:
        networks = APPLIES_TO.get(name, tuple(NETWORK_TRAINING))
        if network not in networks:
            others = f"all networks but {', '.join(other for other in NETWORK_TRAINING if other not in networks)}"
            listed = others if len(networks) > len(NETWORK_TRAINING) / 2 else ", ".join(networks)
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} does not apply to {network}; leave it out (it is for {listed})")


def lora_config(args: argparse.Namespace) -> LoRAConfig | None:
    """The adapters to train, if any."""
    if "lora" not in args:
        return None
    options = {name: getattr(args, name) for name in ("dora", "targets") if name in args}
    return LoRAConfig(rank=args.lora, alpha=getattr(args, "alpha", float(args.lora)), **options)


def lora_settings(args: argparse.Namespace) -> dict[str, object]:
    """The settings of the adapters, for a checkpoint."""
    config = lora_config(args)
    if config is None:
        return dict.fromkeys(LORA_OPTIONS)
    values = config.rank, config.alpha, config.dora or None, [*config.targets]
    return dict(zip(LORA_OPTIONS, values, strict=True))


def refuse_without_lora(args: argparse.Namespace) -> None:
    """Raises `ValueError` for options of adapters without their rank."""
    if others := [name for name in LORA_OPTIONS if name in args and "lora" not in args]:
        raise ValueError(f"--{others[0]} is about low-rank adapters: give their rank with --lora")


class Parser(argparse.ArgumentParser):
    """Raises `ValueError` with one sentence for arguments that cannot be parsed."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")

    def given(self, arguments: Sequence[str]) -> list[str]:
        """The names of the options that the arguments set, without those that have their default."""
        defaults = [action.default for action in self._actions]
        for action in self._actions:
            action.default = argparse.SUPPRESS
        names = [*vars(self.parse_args(arguments))]
        for action, default in zip(self._actions, defaults, strict=True):
            action.default = default
        return names


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def share(text: str) -> float:
    """A number in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1), got {text}")
    return value


def mix(text: str) -> str:
    """The picture world and its share of the steps, as "world:0.2"."""
    if not text.startswith(WORLD) or not 0 < share(text.removeprefix(WORLD)) < 1:
        raise argparse.ArgumentTypeError(f"must be world: and a share above 0 and below 1, as world:0.2; got {text}")
    return text


def world_share(mix: str) -> float:
    """The share of the picture world in a `mix`; 0 for none."""
    return float(mix.removeprefix(WORLD) or 0)


def integer(text: str, minimum: int = 1) -> int:
    """A whole number, `minimum` or more."""
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"must be a whole number from {minimum} up, got {text}")
    return int(text)


def non_negative(text: str) -> int:
    """A whole number, 0 or more."""
    return integer(text, 0)


def targets(text: str) -> tuple[str, ...]:
    """The ends of the names of adapted layers."""
    return TARGETS.get(text) or tuple(filter(None, text.split(",")))


def vocabulary(text: str) -> int:
    """The size of a vocabulary."""
    return integer(text, MIN_VOCABULARY)


def side(text: str) -> int:
    """The side in pixels of square training pictures."""
    value = integer(text)
    if value % GRAIN:
        below = value // GRAIN * GRAIN
        near = f"{below} or {below + GRAIN}" if below else str(GRAIN)
        raise argparse.ArgumentTypeError(f"must be a multiple of {GRAIN}, got {text}; use {near}")
    return value


def source(text: str) -> Source:
    """A folder or a tar, and its weight."""
    try:
        return Source.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parser() -> Parser:
    """The parser of `kandinsky22 train`. Options without a default are absent from the namespace unless given."""
    result = Parser(
        prog="kandinsky22 train",
        description="Train one network of a model, from scratch or from the weights of another model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    result.add_argument(
        "network", choices=tuple(NETWORK_TRAINING), help="each needs the ones before it; movq and clip need nothing"
    )
    add = result.add_argument
    add("--folder", type=Path, default=Path("runs/box"), help="of the run and its model (default: %(default)s)")
    add("--start-from", metavar="MODEL", help="the base model: box, a folder, kandinsky-2.2 (with --data: box)")
    add("--from-scratch", action="store_true", help="start from random weights, even if the base model has the network")
    add(
        "--new-tokenizer",
        nargs="?",
        type=vocabulary,
        const=VOCABULARY,
        metavar="TOKENS",
        help=f"clip: learn a tokenizer from the captions (with --data; default size: at most {VOCABULARY} tokens)",
    )
    add(
        "--recipe",
        choices=RECIPES,
        metavar="NAME",
        help=f"one of {', '.join(RECIPES)} (default: box; with --data: fine-tune)",
    )
    data = result.add_argument_group("training data (default: the picture world)")
    data.add_argument(
        "--data",
        action="append",
        type=source,
        metavar="PATH[:WEIGHT]",
        help="a folder of pictures with captions, or a tar of img2dataset; may be given more than once",
    )
    data.add_argument(
        "--mix", type=mix, metavar="world:SHARE", help="a share of steps on the picture world, to forget less of it"
    )
    data.add_argument(
        "--side", type=side, help="of square pictures, in pixels; others have as many pixels (default: the model's)"
    )
    data.add_argument("--min-side", type=integer, help="skip pictures whose shorter side is less")
    data.add_argument("--min-aesthetic", type=float, metavar="SCORE", help="skip pictures with a lower score, or none")
    data.add_argument(
        "--licence", action="append", metavar="NAME", help="skip pictures with another; may be given more than once"
    )
    data.add_argument(
        "--depth-model", metavar="NAME", help="what estimates depth, for controlnet: a checkpoint or its folder"
    )
    learning = result.add_argument_group("optimisation (default: as in the recipe)")
    length = learning.add_mutually_exclusive_group()
    length.add_argument("--steps", type=integer, help="number of steps")
    length.add_argument("--minutes", type=positive, help="time a few steps, then fix how many fit in this")
    length.add_argument("--more", type=integer, metavar="STEPS", help="train a complete run for so many steps more")
    length.add_argument(
        "--finish", action="store_true", help="end a stopped run: decay in a tenth of its steps, and write the model"
    )
    learning.add_argument("--batch", type=integer, help="rows per step, over all processes")
    learning.add_argument("--accumulate", type=integer, metavar="N", help="compute a batch in N parts, for less memory")
    learning.add_argument(
        "--checkpointing", action=argparse.BooleanOptionalAction, help="recompute activations, for less memory"
    )
    learning.add_argument("--learning-rate", type=positive, metavar="RATE", help="the peak")
    learning.add_argument("--warmup", type=non_negative, metavar="STEPS", help="until the rate is at its peak")
    learning.add_argument(
        "--decay", action=argparse.BooleanOptionalAction, help="whether the rate then falls, as a cosine"
    )
    learning.add_argument("--ema-decay", type=share, metavar="SHARE", help="of the averaged weights, which are saved")
    learning.add_argument(
        "--cond-dropout", type=share, metavar="SHARE", help="of rows trained without their condition, for guidance"
    )
    learning.add_argument("--min-snr", type=positive, metavar="GAMMA", help="weigh timesteps by min(SNR, GAMMA)")
    learning.add_argument(
        "--predict", choices=("epsilon", "v_prediction"), help="prediction type of a new decoder (default: epsilon)"
    )
    learning.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, help="for matrix products, on a device that can"
    )
    adapting = result.add_argument_group("low-rank adapters, instead of all weights")
    adapting.add_argument("--lora", type=integer, metavar="RANK", help="train adapters of this rank, and write a LoRA")
    adapting.add_argument("--alpha", type=positive, help="the adapters' scale times their rank (default: the rank)")
    adapting.add_argument("--dora", action="store_true", help="also learn the lengths of the weights' rows (DoRA)")
    adapting.add_argument(
        "--targets",
        type=targets,
        metavar="NAMES",
        help="attention (default), all layers, or the ends of layers' names: to_q,to_v,conv1",
    )
    learning.add_argument("--seed", type=non_negative, help="of all random numbers")
    running = result.add_argument_group("where it runs, and its output")
    running.add_argument("--device", help="cpu or cuda (default: cuda if available)")
    running.add_argument("--threads", type=integer, default=1, help="of a CPU, per process (default: %(default)s)")
    running.add_argument(
        "--processes", type=integer, default=1, metavar="N", help="on this machine; on several, start torchrun yourself"
    )
    running.add_argument(
        "--relaunch",
        type=non_negative,
        default=0,
        metavar="TIMES",
        help="restart from the last checkpoint after a crash",
    )
    running.add_argument(
        "--backend",
        choices=("local", "ray"),
        default="local",
        help="what starts the processes: this command, or Ray Train (docs/scale.md; default: local)",
    )
    running.add_argument(
        "--address", help="of the Ray cluster, or auto for one on this machine (default: start Ray here)"
    )
    running.add_argument(
        "--every",
        type=integer,
        default=EVERY,
        metavar="STEPS",
        help="between checkpoints and sample grids (default: %(default)s)",
    )
    running.add_argument(
        "--sample",
        action="append",
        metavar="PROMPT",
        help="paint it at each checkpoint; may be repeated",
    )
    running.add_argument(
        "--tensorboard", action="store_true", default=False, help="also write TensorBoard event files (extra: train)"
    )
    running.add_argument(
        "--plan", nargs="?", const="", metavar="GPU", help="only print the memory and time it would take, and stop"
    )
    return result


def export_parser() -> Parser:
    """The parser of `train export`."""
    result = Parser(
        prog="kandinsky22 train export", description="Add a network to its model as it was at a checkpoint."
    )
    result.add_argument("folder", type=Path, help="of a network's run, such as runs/mine/decoder")
    which = result.add_mutually_exclusive_group()
    which.add_argument("--step", type=integer, help="of the checkpoint (default: the last)")
    which.add_argument("--best", action="store_true", help="the weights with the lowest validation loss")
    return result
