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
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "three red circles over a blue triangle"
SCHEDULERS = {
    "prior": {
        "_class_name": "UnCLIPScheduler", "clip_sample": True, "clip_sample_range": 10.0, "num_train_timesteps": 1000,
        "prediction_type": "sample", "variance_type": "fixed_small_log",
    },
    "decoder": {
        "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 0.00085,
        "beta_end": 0.012, "clip_sample": True, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "epsilon",
        "thresholding": False,
    },
}  # fmt: skip
BLOCK = 1_000_003  # numbers that are drawn once and written over and over; a prime, so that no two rows are alike


def write_model(folder: Path) -> None:
    """A model of random weights as the published folders hold it; what is there already is kept."""
    import torch

    from kandinsky22.checkpoints import catalog, full_size, zero_image
    from kandinsky22.checkpoints.about import write_json
    from kandinsky22.checkpoints.store import Stored
    from kandinsky22.checkpoints.tokenizer import save_tokenizer
    from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPVision, CLIPVisionConfig
    from kandinsky22.models.movq import MoVQ
    from kandinsky22.models.prior import PriorTransformer
    from kandinsky22.models.unet import UNet

    prior, decoder = folder / catalog.PRIOR, folder / catalog.DECODER
    networks: dict[Path, tuple[Any, Any, str]] = {
        prior / "text_encoder": (CLIPText, full_size.TEXT_ENCODER, "float32"),
        prior / "image_encoder": (CLIPVision, full_size.IMAGE_ENCODER, "float16"),
        prior / "prior": (PriorTransformer, full_size.PRIOR, "float32"),
        decoder / "unet": (UNet, full_size.UNET, "float32"),
        decoder / "movq": (MoVQ, full_size.MOVQ, "float32"),
    }
    for place, (network, config, dtype) in networks.items():
        write_json(place / "config.json", config.to_dict())
        name = "model" if place.name.endswith("_encoder") else "diffusion_pytorch_model"
        if not (path := place / f"{name}.safetensors").is_file():
            write_random(path, network, config, dtype)
    for part, scheduler in ((prior, SCHEDULERS["prior"]), (decoder, SCHEDULERS["decoder"])):
        write_json(part / "scheduler" / "scheduler_config.json", scheduler)
    write_json(prior / "model_index.json", catalog.PRIOR_INDEX)
    write_json(decoder / "model_index.json", catalog.DECODER_INDEX)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    processor = CLIPImageProcessor(size=224, crop_size=224, image_mean=mean, image_std=std)
    write_json(prior / "image_processor" / "preprocessor_config.json", processor.to_dict())
    save_tokenizer(prior / "tokenizer", tokenizer())
    encoder = Stored(prior / "image_encoder", CLIPVision, CLIPVisionConfig)
    some = torch.zeros(
        1, full_size.IMAGE_ENCODER.projection_dim
    )  # for the embedding that is computed once and then kept
    zero_image.write(prior / zero_image.SHIPPED, some, encoder.fingerprint)


def write_random(path: Path, network: Any, config: Any, dtype: str) -> None:
    """A network's weights, N(0, 0.02), in the safetensors format."""
    import torch

    with torch.device("meta"):
        tensors = network(config).state_dict()
    itemsize, end, header = {"float32": 4, "float16": 2}[dtype], 0, {}
    for name, value in tensors.items():
        begin, end = end, end + value.numel() * itemsize
        kind = {"float32": "F32", "float16": "F16"}[dtype]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02
    block = draw.to(getattr(torch, dtype)).numpy().tobytes()
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while end > 0:
            file.write(block[:end])
            end -= len(block)
    partial.rename(path)


def tokenizer() -> Any:
    """A byte-level tokenizer with as many tokens as CLIP's: pairs of letters."""
    from kandinsky22.checkpoints import full_size
    from kandinsky22.models.tokenizer import END, START, WORD_END, Tokenizer, learn

    alphabet = list(learn([PROMPT], 514, 77).vocab)[:256]
    pairs = [(a, b) for a in alphabet for b in alphabet][: full_size.TEXT_ENCODER.vocab_size - 514]
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet), *map("".join, pairs), START, END]
    return Tokenizer({token: i for i, token in enumerate(tokens)}, pairs, 77)


def kandinsky22(placement: Any) -> Callable[[Path, int, int], object]:
    """A picture by this package."""

    def run(folder: Path, side: int, steps: int) -> object:
        from kandinsky22 import Kandinsky

        model = Kandinsky.load(folder, device="cpu", dtype="bfloat16", placement=placement)
        sizes = {"height": side, "width": side, "num_inference_steps": steps, "prior_num_inference_steps": steps}
        return model(PROMPT, seed=0, guidance_scale=4.0, prior_guidance_scale=4.0, **sizes)

    return run


def diffusers(folder: Path, side: int, steps: int) -> object:
    """A picture by diffusers, as its documentation has it: both pipelines, then both runs."""
    prior, decoder = pipeline(folder, "prior"), pipeline(folder, "decoder")
    embeds = prior(PROMPT, num_inference_steps=steps, guidance_scale=4.0)
    return decoder(**embeds, height=side, width=side, num_inference_steps=steps, guidance_scale=4.0)


def sparing(folder: Path, side: int, steps: int) -> object:
    """The same with what can be spared by hand: the prior's pipeline is deleted before the decoder's is loaded, and the
    image encoder is left out, which asks for a negative prompt."""
    prior = pipeline(folder, "prior", image_encoder=None)
    embeds = prior(PROMPT, negative_prompt="", num_inference_steps=steps, guidance_scale=4.0)
    del prior
    gc.collect()
    decoder = pipeline(folder, "decoder")
    return decoder(**embeds, height=side, width=side, num_inference_steps=steps, guidance_scale=4.0)


def pipeline(folder: Path, part: str, **changes: Any) -> Any:
    """diffusers' pipeline of a part of the model."""
    import torch
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder / part, torch_dtype=torch.bfloat16, **changes)


ROWS = {
    "kandinsky22, offload": kandinsky22("offload"),
    "kandinsky22, keep": kandinsky22("keep"),
    "diffusers, sparing": sparing,
    "diffusers": diffusers,
}


def peak() -> int:
    """The most resident bytes this process has had (VmHWM; getrusage may tell those of its parent)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure text to image's memory against diffusers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", choices=list(ROWS))
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.row is not None:
        began = time.process_time()
        ROWS[chosen.row](chosen.folder, chosen.side, chosen.steps)
        print(json.dumps({"peak": peak(), "seconds": time.process_time() - began}))
        return
    write_model(chosen.folder)
    print(
        f"{chosen.side} px, {chosen.steps} + {chosen.steps} steps, guided, bfloat16 on a CPU, threads: {chosen.threads}"
    )
    print("| | peak, GB resident | processor seconds |\n|---|---|---|")
    environment = {**os.environ, "OMP_NUM_THREADS": str(chosen.threads), "HF_HUB_OFFLINE": "1"}
    asked = [str(chosen.folder), "--side", str(chosen.side), "--steps", str(chosen.steps)]
    for row in chosen.only or ROWS:
        command = [sys.executable, __file__, *asked, "--row", row]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        print(f"| {row} | {told['peak'] / 1e9:.2f} | {told['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
