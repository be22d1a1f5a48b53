"""The memory of text to image at the published size, beside diffusers: the same folder, prompt, steps, dtype and threads.

    python benchmarks/memory.py FOLDER [--side 512] [--steps 2] [--threads 1] [--only "kandinsky22, offload"]

FOLDER is filled, where it is not yet, with random weights in the published layout, names, shapes and dtypes: 16 GB. Each
row is a process of its own. Its peak is resident memory as Linux counts it, in which pages of mapped files count. Steps
change no peak, so there are few.
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
    """A picture by this package."""

    def run(folder: Path, side: int, steps: int, dtype: str) -> object:
        from kandinsky22 import Kandinsky

        model = Kandinsky.load(folder, device="cpu", dtype=dtype, placement=placement)
        sizes = {"height": side, "width": side, "num_inference_steps": steps, "prior_num_inference_steps": steps}
        return model(PROMPT, seed=0, guidance_scale=4.0, prior_guidance_scale=4.0, **sizes)

    return run


def diffusers(folder: Path, side: int, steps: int, dtype: str) -> object:
    """A picture by diffusers, as its documentation has it: both pipelines, then both runs."""
    prior, decoder = pipeline(folder, "prior", dtype), pipeline(folder, "decoder", dtype)
    embeds = prior(PROMPT, num_inference_steps=steps, guidance_scale=4.0)
    return decoder(**embeds, height=side, width=side, num_inference_steps=steps, guidance_scale=4.0)


def sparing(folder: Path, side: int, steps: int, dtype: str) -> object:
    """The same with what can be spared by hand: the prior's pipeline is deleted before the decoder's is loaded, and the
    image encoder is left out, which asks for a negative prompt."""
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
    "diffusers, sparing": sparing,
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
    print(
        f"{chosen.side} px, {chosen.steps} + {chosen.steps} steps, guided, {chosen.dtype} on a CPU, threads: {chosen.threads}"
    )
    print("| | peak, GB resident | processor seconds |\n|---|---|---|")
    environment = {**os.environ, "OMP_NUM_THREADS": str(chosen.threads), "HF_HUB_OFFLINE": "1"}
    asked = [str(chosen.folder), "--side", str(chosen.side), "--steps", str(chosen.steps), "--dtype", chosen.dtype]
    for row in chosen.only or ROWS:
        command = [sys.executable, __file__, *asked, "--row", row]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        print(f"| {row} | {told['peak'] / 1e9:.2f} | {told['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
