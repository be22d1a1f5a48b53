"""`kandinsky22 train NETWORK`: one network of the small model, with progress, metrics, sheets and checkpoints."""

import argparse
import ctypes
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kandinsky22.training.box import Box
from kandinsky22.training.recipes import BOX, NETWORKS
from kandinsky22.training.run import EVERY

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt


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


def whole(text: str) -> int:
    """A whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text}")
    return value


def main(arguments: Sequence[str]) -> None:
    """Train as the arguments say. Raises `ValueError` for what cannot be done."""
    parser = Parser(prog="kandinsky22 train", description="Train one network of the small model.")
    parser.add_argument(
        "network", choices=NETWORKS, help="in this order, each needs the ones before; movq and clip are independent"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/box"), help="where the run and its model grow (default: %(default)s)"
    )
    parser.add_argument(
        "--start-from", type=Path, metavar="MODEL", help="begin with the weights of this model's folder"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=whole, help="how many steps (default: the recipe's)")
    length.add_argument("--minutes", type=positive, help="time a few steps, then fix how many fit in this")
    parser.add_argument(
        "--threads", type=whole, default=1, help="of the processor; two runs of one thread beat one of two (default: 1)"
    )
    chosen = parser.parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(chosen.threads)

    box = Box(BOX, chosen.folder, chosen.start_from)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(chosen.network, total=None, said="")
        for line in box.train(chosen.network, steps=chosen.steps, minutes=chosen.minutes):
            progress.update(task, total=line["of"], completed=line["step"], said=f"loss {line['loss']:.4f}")
            if line["step"] % EVERY == 0 or line["step"] == line["of"]:  # a held-out set was looked at
                progress.console.print({k: round(v, 4) for k, v in line.items()})
    print(f"the model so far is in {box.folder / 'model'}")
