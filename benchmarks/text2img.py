"""Text to image side by side with diffusers: the same weights, seeds, steps and threads in one process, turn by turn.

    python benchmarks/text2img.py [--model FOLDER] [--rounds 5] [--steps 50] [--threads 2]

Prints the median seconds of each and their ratio. Loading is not counted; a first round of each warms up.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from kandinsky22 import Kandinsky, text2img
from kandinsky22.checkpoints import catalog

PROMPT = "three red circles over a blue triangle"


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def diffusers_run(folder: Path, side: int, steps: int, prior_steps: int) -> Callable[[], object]:
    """A run of diffusers' two pipelines on the folder."""
    import diffusers

    prior = diffusers.KandinskyV22PriorPipeline.from_pretrained(folder / catalog.PRIOR, dtype=torch.float32)
    decoder = diffusers.KandinskyV22Pipeline.from_pretrained(folder / catalog.DECODER, dtype=torch.float32)
    for pipeline in (prior, decoder):
        pipeline.set_progress_bar_config(disable=True)

    def run() -> object:
        generator = torch.Generator().manual_seed(0)
        out = prior(PROMPT, num_inference_steps=prior_steps, generator=generator)
        return decoder(
            **out, height=side, width=side, num_inference_steps=steps, guidance_scale=4.0, generator=generator
        )

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Time text to image against diffusers.")
    parser.add_argument("--model", default="box")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prior-steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)

    kandinsky = Kandinsky.load(chosen.model, device="cpu", dtype="float32")
    request = text2img(
        PROMPT, seed=0, num_inference_steps=chosen.steps, guidance_scale=4.0, sampler="ddpm", prior_sampler="unclip",
        prior_num_inference_steps=chosen.prior_steps, prior_guidance_scale=4.0,
    )  # fmt: skip
    side = kandinsky.defaults.height
    theirs = diffusers_run(catalog.locate(chosen.model), side, chosen.steps, chosen.prior_steps)
    seeds = count()  # a new one each time: what the prior made of a text and a seed is kept
    runs = {"kandinsky22": lambda: kandinsky(replace(request, seed=next(seeds))), "diffusers": theirs}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for work in runs.values():
        work()
    for _ in range(chosen.rounds):
        for name, work in runs.items():
            times[name].append(seconds(work))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{side} px, {chosen.prior_steps} + {chosen.steps} steps, guided, float32, {chosen.threads} threads")
    for name, values in times.items():
        print(f"{name:12} {medians[name]:7.3f} s   ({min(values):.3f} - {max(values):.3f})")
    print(f"ratio        {medians['diffusers'] / medians['kandinsky22']:7.2f}")


if __name__ == "__main__":
    main()
