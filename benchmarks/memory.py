"""The memory of text to image at the published size, compared with diffusers: the same folder, prompt, steps, dtype and
threads.

    python benchmarks/memory.py FOLDER [--side 512] [--steps 2] [--threads 1] [--only "kandinsky22, offload"]

FOLDER is first filled, where necessary, with random weights in the published layout, names, shapes and dtypes: 16 GB.
Each row is its own process. Its peak is resident memory as counted by Linux, including pages of mapped files. The
number of steps does not change the peak, so there are few.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turns import peak
from works import PROMPT


def kandinsky22(placement: Any) -> Callable[[Path, int, int, str], object]:
    """A function that paints a picture with this package."""

    def run(folder: Path, side: int, steps: int, dtype: str) -> object:
        from kandinsky22 import Kandinsky

        model = Kandinsky.load(folder, device="cpu", dtype=dtype, placement=placement)
        sizes = {"height": side, "width": side, "num_inference_steps": steps, "prior_num_inference_steps": steps}
        return model(PROMPT, seed=0, guidance_scale=4.0, prior_guidance_scale=4.0, **sizes)

    return run


def diffusers(folder: Path, side: int, steps: int, dtype: str) -> object:
    """A picture by diffusers, as in its documentation: load both pipelines, then run both."""
    prior, decoder = pipeline(folder, "prior", dtype), pipeline(folder, "decoder", dtype)
    embeds = prior(PROMPT, num_inference_steps=steps, guidance_scale=4.0)
    return decoder(**embeds, height=side, width=side, num_inference_steps=steps, guidance_scale=4.0)


def minimal(folder: Path, side: int, steps: int, dtype: str) -> object:
    """The same with the least memory possible by hand: the prior's pipeline is deleted before the decoder's is loaded,
    and the image encoder is left out, which requires a negative prompt."""
    prior = pipeline(folder, "prior", dtype, image_encoder=None)
    embeds = prior(PROMPT, negative_prompt="", num_inference_steps=steps, guidance_scale=4.0)
    del prior
    gc.collect()
    decoder = pipeline(folder, "decoder", dtype)
    return decoder(**embeds, height=side, width=side, num_inference_steps=steps, guidance_scale=4.0)


def pipeline(folder: Path, part: str, dtype: str, **changes: Any) -> Any:
    """diffusers' pipeline of a part of the model."""
    import torch
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder / part, dtype=getattr(torch, dtype), **changes)


ROWS = {
    "kandinsky22, offload": kandinsky22("offload"),
    "kandinsky22, keep": kandinsky22("keep"),
    "diffusers, minimal": minimal,
    "diffusers": diffusers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure text to image's memory against diffusers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", choices=list(ROWS))
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.row is not None:
        began = time.process_time()
        ROWS[chosen.row](chosen.folder, chosen.side, chosen.steps, chosen.dtype)
        print(json.dumps({"peak": peak(), "seconds": time.process_time() - began}))
        return
    import random_model

    random_model.write_model(chosen.folder)
    steps = f"{chosen.steps} + {chosen.steps} steps"
    print(f"{chosen.side} px, {steps}, guided, {chosen.dtype} on a CPU, threads: {chosen.threads}")
    print("| | peak, GB resident | processor seconds |\n|---|---|---|")
    environment = {**os.environ, "OMP_NUM_THREADS": str(chosen.threads), "HF_HUB_OFFLINE": "1"}
    options = [str(chosen.folder), "--side", str(chosen.side), "--steps", str(chosen.steps), "--dtype", chosen.dtype]
    for row in chosen.only or ROWS:
        command = [sys.executable, __file__, *options, "--row", row]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        print(f"| {row} | {measured['peak'] / 1e9:.2f} | {measured['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
