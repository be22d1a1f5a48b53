"""The model card's evaluation end to end, with all 2,048 features and without published weights.

    python -m runs.rehearse_coco30k FOLDER [--pictures 2064]

A model with random weights paints the captions, and an Inception with random weights computes the features. The numbers
mean nothing; their correctness is what is tested: FID is recomputed from the stored features by numpy and scipy's
matrix root, and KID by its sums. An interrupted run continues. Painting is fast; Inception processes every picture
once, some tenths of a second each on one core.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from PIL import Image
from runs.compare_features import noise, weights
from tests.models_on_disk import write_tiny_model

from kandinsky22.evaluation.reference import Statistics, load


def main() -> None:
    """Create missing inputs, run the command, and recompute its numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--pictures", type=int, default=2064, help="pictures on each side, more than 2,048 (default: 2064)"
    )
    options = parser.parse_args()
    folder, count = options.folder, options.pictures
    model, inception, captions, real = (folder / name for name in ("model", "inception.pth", "captions.csv", "real"))
    if not real.exists():
        write_tiny_model(model)
        torch.save(weights(), inception)
        lines = "".join(f"{9 * k},{k},a red circle and {k} blue stars\n" for k in range(count))
        captions.write_text(f"image_id,id,caption\n{lines}", encoding="utf-8")
        real.mkdir()
        for k in range(count):
            Image.fromarray((noise((64, 64), k) * np.random.default_rng(k).random(3)).astype(np.uint8)).save(
                real / f"{k}.png"
            )
    command = [sys.executable, "-m", "kandinsky22", "evaluate", "coco30k", "--model", model, "--captions", captions]
    command += ["--reference", real, "--inception", inception, "--out", folder / "out", "--device", "cpu"]
    command += ["--processes", "1", "--threads", "1", "--batch", "24", "--steps", "1"]
    command += ["--prior-num-inference-steps", "1"]
    subprocess.run([*map(str, command)], check=True)

    ours, theirs = (
        load(next((folder / "out").glob(f"{name}-*.safetensors"))) for name in ("pictures", "real-pictures")
    )
    report = json.loads((folder / "out" / "report.json").read_text("utf-8"))
    fid, kid = frechet(ours, theirs), kernel(ours, theirs, report["kid"]["size"], report["kid"]["seed"])
    for name, value, by, again in (("FID", report["fid"], "scipy", fid), ("KID", report["kid"]["mean"], "numpy", kid)):
        print(f"{name} {value!r}, by {by} {again!r}: relative difference {abs(value / again - 1):.1e}")


def frechet(a: Statistics, b: Statistics) -> float:
    """The Frechet distance, as in pytorch-fid."""
    x, y = (s.rows.double().numpy() for s in (a, b))
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * np.trace(root.real))


def kernel(a: Statistics, b: Statistics, size: int, seed: int, subsets: int = 100) -> float:
    """KID: the mean over subsets of Binkowski et al.'s unbiased estimate."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        x, y = (s.rows[torch.randperm(len(s.rows), generator=generator)[:size]].double().numpy() for s in (a, b))
        xx, yy, xy = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        within = sum(k.sum() - np.trace(k) for k in (xx, yy)) / (size * (size - 1))
        values.append(within - 2 * xy.mean())
    return float(np.mean(values))


if __name__ == "__main__":
    main()
