"""A model of the published size with random weights, in the published layout, names, shapes and dtypes: 16 GB.

The weights preserve the scale of activations, so that the networks compute numbers like those of trained networks, and
the results of two programs can be compared: weights N(0, 1 / inputs), scales of normalisations 1, everything else
small.
"""

import json
import math
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import torch

from kandinsky22.checkpoints import catalog, full_size, zero_image
from kandinsky22.checkpoints.json_files import write_json
from kandinsky22.checkpoints.network import Stored
from kandinsky22.checkpoints.tokenizer import save_tokenizer
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPVision, CLIPVisionConfig
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.tokenizer import END, START, WORD_END, Tokenizer, learn
from kandinsky22.models.unet import UNet

SCHEDULERS = {
    catalog.PRIOR: {
        "_class_name": "UnCLIPScheduler",
        "clip_sample": True,
        "clip_sample_range": 10.0,
        "num_train_timesteps": 1000,
        "prediction_type": "sample",
        "variance_type": "fixed_small_log",
    },
    catalog.DECODER: {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "epsilon",
        "thresholding": False,
    },
}
NETWORKS: dict[str, tuple[Any, Any, torch.dtype]] = {
    "prior/text_encoder": (CLIPText, full_size.TEXT_ENCODER, torch.float32),
    "prior/image_encoder": (CLIPVision, full_size.IMAGE_ENCODER, torch.float16),
    "prior/prior": (PriorTransformer, full_size.PRIOR, torch.float32),
    "decoder/unet": (UNet, full_size.UNET, torch.float32),
    "decoder/movq": (MoVQ, full_size.MOVQ, torch.float32),
}
CODES = {torch.float32: "F32", torch.float16: "F16"}
SMALL = 0.02


def write_model(folder: Path) -> None:
    """Write the model to a folder. Existing weight files stay, so that an interrupted call can be repeated."""
    for name, (network, config, dtype) in NETWORKS.items():
        write_json(folder / name / "config.json", config.to_dict())
        stem = "model" if name.endswith("_encoder") else "diffusion_pytorch_model"
        if not (path := folder / name / f"{stem}.safetensors").is_file():
            print(f"drawing the weights of {name}", file=sys.stderr, flush=True)
            write_weights(path, network, config, dtype)
    prior, decoder = folder / catalog.PRIOR, folder / catalog.DECODER
    for part in (prior, decoder):
        write_json(part / "scheduler" / "scheduler_config.json", SCHEDULERS[part.name])
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    processor = CLIPImageProcessor(size=224, crop_size=224, image_mean=mean, image_std=std)
    write_json(prior / "image_processor" / "preprocessor_config.json", processor.to_dict())
    save_tokenizer(prior / "tokenizer", tokenizer())
    if not (path := prior / zero_image.SHIPPED).is_file():  # the embedding of the empty picture, computed once
        encoder = Stored(prior / "image_encoder", CLIPVision, CLIPVisionConfig)
        zero_image.write(path, zero_image.compute(encoder), encoder.fingerprint)
    write_json(prior / "model_index.json", catalog.PRIOR_INDEX)
    write_json(decoder / "model_index.json", catalog.DECODER_INDEX)  # last: it marks the folder as complete


def write_weights(path: Path, network: Any, config: Any, dtype: torch.dtype) -> None:
    """Write random weights of a network to a safetensors file, tensor by tensor."""
    with torch.device("meta"):
        tensors = network(config).state_dict()
    end, header = 0, {}
    for name, value in tensors.items():
        begin, end = end, end + value.numel() * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, value in tensors.items():
            file.write(drawn(name, value.shape).to(dtype).numpy().tobytes())
    partial.rename(path)


def drawn(name: str, shape: torch.Size) -> torch.Tensor:
    """The random weight of this name, always the same."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name == "clip_std" or (len(shape) == 1 and "norm" in name and name.endswith("weight")):
        return torch.ones(shape)
    if len(shape) < 2 or name.removesuffix(".weight").endswith("embedding"):
        return noise * SMALL
    return noise / math.sqrt(math.prod(shape[1:]))


def tokenizer() -> Tokenizer:
    """A byte-level tokenizer with as many tokens as CLIP's: pairs of bytes."""
    alphabet = list(learn(["any text"], 514, 77).vocab)[:256]
    pairs = [(a, b) for a in alphabet for b in alphabet][: full_size.TEXT_ENCODER.vocab_size - 514]
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet), *map("".join, pairs), START, END]
    return Tokenizer({token: i for i, token in enumerate(tokens)}, pairs, 77)
