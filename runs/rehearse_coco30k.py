"""The model card's evaluation from end to end, with all 2,048 features and no published weights: pictures, networks and numbers.

    python -m runs.rehearse_coco30k FOLDER [--pictures 2064]

A model of random weights paints the captions and an Inception of random weights looks on, so the numbers mean nothing; whether
they are right does: FID again from the kept features by numpy and scipy's matrix root, and KID by its sums. Goes on where it
was stopped. Painting is quick; Inception sees every picture once, some tenths of a second each on one core.
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
    """Make what is not there, run the command, and compute its numbers again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=2064, help="a side; more than 2,048 (default: 2064)")
    options = parser.parse_args()
    folder, count = options.folder, options.pictures
    model, inception, captions, real = (folder / name for name in ("model", "inception.pth", "captions.csv", "real"))
    if not real.exists():
        write_tiny_model(model)
        torch.save(weights(), inception)
        said = "".join(f"{9 * k},{k},a red circle and {k} blue stars\n" for k in range(count))
        captions.write_text(f"image_id,id,caption\n{said}", encoding="utf-8")
        real.mkdir()
        for k in range(count):
            Image.fromarray((noise((64, 64), k) * np.random.default_rng(k).random(3)).astype(np.uint8)).save(
                real / f"{k}.png"
            )
    command = [sys.executable, "-m", "kandinsky22", "evaluate", "coco30k", "--model", model, "--captions", captions]
    command += ["--reference", real, "--inception", inception, "--out", folder / "out", "--device", "cpu"]
    command += [
        "--processes",
        "1",
        "--threads",
        "1",
        "--batch",
        "24",
        "--steps",
        "1",
        "--prior-num-inference-steps",
        "1",
    ]
    subprocess.run([*map(str, command)], check=True)

    ours, theirs = (
        load(next((folder / "out").glob(f"{name}-*.safetensors"))) for name in ("pictures", "real-pictures")
    )
    told = json.loads((folder / "out" / "report.json").read_text("utf-8"))
    fid, kid = frechet(ours, theirs), kernel(ours, theirs, told["kid"]["size"], told["kid"]["seed"])
    print(f"FID {told['fid']!r}, by scipy {fid!r}: {abs(told['fid'] / fid - 1):.1e} apart, relative")
    print(f"KID {told['kid']['mean']!r}, by numpy {kid!r}: {abs(told['kid']['mean'] / kid - 1):.1e} apart, relative")


def frechet(a: Statistics, b: Statistics) -> float:
    """As pytorch-fid writes it."""
    x, y = (s.rows.double().numpy() for s in (a, b))
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * np.trace(root.real))


def kernel(a: Statistics, b: Statistics, size: int, seed: int, subsets: int = 100) -> float:
    """The mean over subsets of Binkowski et al.'s unbiased estimate."""
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
