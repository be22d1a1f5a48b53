"""Render the pictures that the box learns from, before training: `python runs/render_world.py FOLDER [--movq]`.

FOLDER is the training folder, with the things of `fetch_things.py` in FOLDER/things. --movq renders only what MoVQ
needs. An interrupted run resumes with the first missing file of 4,096 pictures. Training renders what is missing by
itself; this script does it on another core, or for another machine.
"""

import argparse
import time
from pathlib import Path

from kandinsky22.training.mixture import Mixture
from kandinsky22.training.precompute import TrainingData
from kandinsky22.training.recipes import BOX


def main() -> None:
    """Parse the arguments and render."""
    parser = argparse.ArgumentParser(description="Render the pictures that the box learns from.")
    parser.add_argument("folder", type=Path, help="the training folder")
    parser.add_argument("--movq", action="store_true", help="only the pictures that MoVQ needs")
    args = parser.parse_args()
    start = time.monotonic()

    def print_progress(task: str, done: int, total: int) -> None:
        print(f"{time.monotonic() - start:6.0f} s: {task}: {done} of {total}", flush=True)

    data = TrainingData(BOX, args.folder, BOX.image_processor, progress=print_progress)
    for pictures in [*data.movq_sets, data.held_out_things]:
        assert isinstance(pictures, Mixture)
        _ = pictures.pixels
    if not args.movq:
        for pictures in [data.held_out, *data.sets]:
            assert isinstance(pictures, Mixture)
            _ = pictures.pixels


if __name__ == "__main__":
    main()
