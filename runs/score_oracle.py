"""How often the oracle reads a true scene right: fresh scenes, rendered and read back.

python runs/score_oracle.py [--scenes 1000] [--seed 22]
"""

import argparse

import numpy as np

from kandinsky22.compositions import judge, read, render, sample, wilson

PICTURES = {"128 px": (128, 1.0), "64 px": (64, 1.0), "64 px, twice as wide": (64, 2.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the oracle on true scenes.")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=22)
    chosen = parser.parse_args()
    for name, (side, width) in PICTURES.items():
        scenes = [sample(np.random.default_rng([chosen.seed, i]), width=width) for i in range(chosen.scenes)]
        right = sum(judge(read(render(scene, side)), scene)["whole"] for scene in scenes)
        low, high = wilson(right, len(scenes))
        print(f"{name:22} {right} of {len(scenes)} whole scenes ({100 * low:.1f}-{100 * high:.1f}%)")


if __name__ == "__main__":
    main()
