"""How often the oracle reads a true scene correctly: new scenes, rendered, possibly degraded, and read back.

python runs/score_oracle.py [--scenes 1000] [--seed 22]

With `--fit-styles PICTURES` it fits the oracle's style classifier instead, and prints its weights as Python.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from kandinsky22.compositions import STYLES, judge, read, render, sample, wilson
from kandinsky22.compositions.segments import at_reading_size, segment
from kandinsky22.compositions.style_classifier import LUMA, patch_features

Degrade = Callable[[np.ndarray], np.ndarray]
FIT_SEED, FIT_STEPS = 7, 3000


def blurred(pixels: np.ndarray, radius: float = 1.0) -> np.ndarray:
    """With a Gaussian blur of `radius` pixels."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def noisy(pixels: np.ndarray, deviation: float = 5.0, seed: int = 0) -> np.ndarray:
    """With Gaussian noise."""
    noise = np.random.default_rng(seed).normal(0, deviation, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def untouched(pixels: np.ndarray) -> np.ndarray:
    """Unchanged."""
    return pixels


PICTURES: dict[str, tuple[int, float, float, Degrade]] = {
    "128 px": (128, 1.0, 1.0, untouched),
    "128 px, twice as wide": (128, 1.0, 2.0, untouched),
    "128 px, twice as high": (128, 2.0, 1.0, untouched),
    "128 px, half as wide again": (128, 1.0, 1.5, untouched),
    "64 px": (64, 1.0, 1.0, untouched),
    "128 px, blurred by 1 px": (128, 1.0, 1.0, blurred),
    "128 px, noise of 5 of 255": (128, 1.0, 1.0, noisy),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the oracle on true scenes.")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=22)
    parser.add_argument("--fit-styles", type=int, metavar="PICTURES")
    chosen = parser.parse_args()
    if chosen.fit_styles:
        print(fitted(chosen.fit_styles))
        return
    for name, (side, height, width, degrade) in PICTURES.items():
        verdicts = []
        for i in range(chosen.scenes):
            scene = sample(np.random.default_rng([chosen.seed, i]), height=height, width=width)
            verdicts.append(judge(read(degrade(render(scene, side))), scene))
        right = sum(verdict["whole"] for verdict in verdicts)
        low, high = wilson(right, len(verdicts))
        wrong = {
            key: sum(not v.get(key, True) for v in verdicts) for key in ("ground", "colors", "shape", "count", "style")
        }
        errors = ", ".join(f"{key} {number}" for key, number in wrong.items() if number) or "nothing"
        rate = f"{right} of {len(verdicts)} completely right ({100 * low:.1f}-{100 * high:.1f}%)"
        print(f"{name:26} {rate}; wrong: {errors}", flush=True)


def fitted(count: int) -> str:
    """The text of `style_weights.py`: logistic regression on patches of pictures, some of them degraded."""
    measured: dict[bool, list[tuple[np.ndarray, int]]] = {True: [], False: []}
    for i in range(count):
        rng = np.random.default_rng([FIT_SEED, i])
        scene = replace(sample(rng), style=STYLES[i % len(STYLES)])
        pixels = render(scene, 64 if rng.random() < 0.2 else 128)
        pixels = blurred(pixels, float(rng.uniform(0.3, 1.2))) if rng.random() < 0.35 else pixels
        pixels = noisy(pixels, float(rng.uniform(0, 5)), i) if rng.random() < 0.35 else pixels
        pixels = at_reading_size(pixels)
        ground, patches = segment(pixels)
        for patch in patches:
            measured[patch.color == "black"].append((patch_features(pixels @ LUMA, ground, patch), i % len(STYLES)))
    tables = {"COLORED": regressed(measured[False]), "BLACK": regressed(measured[True])}
    lines = ['"""The weights of each feature of a patch for each style; the last row is the bias.', ""]
    lines += [f"Fitted by `python runs/score_oracle.py --fit-styles {count}`.", '"""', ""]
    for name, table in tables.items():
        lines += [f"{name} = (", *(f"    ({', '.join(f'{value:.2f}' for value in row)})," for row in table), ")"]
    return "\n".join(lines)


def regressed(measured: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Weights [features + 1, styles] for features that are not standardised."""
    x, y = np.array([values for values, _ in measured]), np.array([style for _, style in measured])
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    design = np.concatenate(((x - mean) / deviation, np.ones((len(x), 1))), axis=1)
    weights, speed = np.zeros((design.shape[1], len(STYLES))), 0.0
    for _ in range(FIT_STEPS):
        scores = design @ weights
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        speed = 0.9 * speed + design.T @ (odds - np.eye(len(STYLES))[y]) / len(x) + 1e-4 * weights
        weights = weights - 0.5 * speed
    raw = weights[:-1] / deviation[:, None]
    return np.concatenate((raw, (weights[-1] - mean @ raw)[None]))


if __name__ == "__main__":
    main()
