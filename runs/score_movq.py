"""Measure MoVQ's reconstruction of held-out pictures: `python runs/score_movq.py FOLDER [--pictures 200]`.

FOLDER is that of a training run. Prints the mean PSNR in dB with a 95% interval, on scenes with held-out things in each
drawing style and on scenes of shapes, and writes originals above their reconstructions to FOLDER/movq-score.png. The
networks that learn from its latents require 28 dB on held-out things. An unfinished run is measured with its best
weights.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from kandinsky22.checkpoints.network import Stored
from kandinsky22.compositions.thing_scenes import ThingScene
from kandinsky22.compositions.things import DRAWINGS
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.training.mixture import Mixture
from kandinsky22.training.model_trainer import ADDED
from kandinsky22.training.movq import psnr
from kandinsky22.training.precompute import HELD_OUT, HELD_OUT_SEED, TrainingData
from kandinsky22.training.recipes import BOX
from kandinsky22.training.run import BEST
from kandinsky22.training.sample_grid import image_grid


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description="Measure MoVQ's reconstruction of held-out pictures.")
    parser.add_argument("folder", type=Path, help="the training folder")
    parser.add_argument("--pictures", type=int, default=200, help="number of pictures of each kind")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = TrainingData(BOX, args.folder, BOX.image_processor)
    unseen = data.held_out_things
    assert isinstance(unseen, Mixture)
    shapes = Mixture(args.folder, data.things, HELD_OUT, BOX.side, HELD_OUT_SEED, things_share=0.0)
    scenes = [unseen.scene(i) for i in range(len(unseen))]
    flat, shaded = (
        [i for i, scene in enumerate(scenes) if isinstance(scene, ThingScene) and scene.drawing == drawing]
        for drawing in DRAWINGS
    )
    movq = load_movq(args.folder)
    examples = []
    for name, pictures, rows in (
        ("held-out things, flat", unseen, flat),
        ("held-out things, shaded", unseen, shaded),
        ("shapes", shapes, range(HELD_OUT)),
    ):
        values, first = measure(movq, pictures, [*rows][: args.pictures])
        examples.append(first)
        mean, error = values.mean(), 1.96 * values.std() / len(values) ** 0.5
        print(f"{name}: {mean:.1f} ({mean - error:.1f}-{mean + error:.1f}) dB on {len(values)}", flush=True)
    pictures_to_draw = [picture for pair in examples for part in pair for picture in part]
    image_grid(pictures_to_draw, 8).save(args.folder / "movq-score.png")


def load_movq(folder: Path) -> MoVQ:
    """The run's MoVQ: the one added to the model, or that with the best weights so far."""
    if (folder / "movq" / ADDED).exists():
        stored: Stored[MoVQ, MoVQConfig] = Stored(folder / "model" / "decoder" / "movq", MoVQ, MoVQConfig)
        return stored.load(torch.float32, torch.device("cpu")).eval()
    movq = MoVQ(BOX.movq)
    weights = load_file(folder / "movq" / BEST)
    movq.load_state_dict({name.removeprefix("movq."): value for name, value in weights.items()})
    return movq.eval()


@torch.no_grad()
def measure(movq: MoVQ, pictures: Mixture, rows: list[int]) -> tuple[np.ndarray, tuple[torch.Tensor, torch.Tensor]]:
    """The PSNR of each picture [N], and the first eight pictures with their reconstructions."""
    values, first = [], None
    for start in range(0, len(rows), 8):
        originals = pictures.pictures(rows[start : start + 8])
        reconstructed = movq.decode(movq.encode(originals))
        values.append(psnr(reconstructed, originals))
        first = first or (originals, reconstructed)
    assert first is not None
    return torch.cat(values).numpy(), first


if __name__ == "__main__":
    main()
