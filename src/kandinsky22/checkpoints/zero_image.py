"""The embedding of the all-zero picture: the one constant for which text-to-image would need the image encoder.

A model's folder may ship it beside its `model_index.json`, as the box does; else it is computed once and kept in the
user's cache under the encoder's fingerprint. The model's folder is never written to.
"""

import contextlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kandinsky22.checkpoints.store import Stored, cache
from kandinsky22.files import whole
from kandinsky22.models.clip import CLIPVision, CLIPVisionConfig

SHIPPED = "zero_image_embed.safetensors"
KEY, MADE_BY = "zero_image_embed", "encoder"
ENCODER = "image_encoder"


def zero_image_embed(prior: Path) -> Tensor:
    """float32 [1, D], for the prior pipeline in `prior`. Zeros come after normalisation: the picture is a middle grey.

    Where the folder has no image encoder, what it ships is trusted. Raises `CheckpointError` where it has neither.
    """
    if not (prior / ENCODER).is_dir() and (embed := _read(prior / SHIPPED, None)) is not None:
        return embed
    stored = Stored(prior / ENCODER, CLIPVision, CLIPVisionConfig)
    kept = cache() / "zero-image" / f"{stored.fingerprint}.safetensors"
    for path in (prior / SHIPPED, kept):
        if (embed := _read(path, stored.fingerprint)) is not None:
            return embed
    embed = compute(stored)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not pictures
        write(kept, embed, stored.fingerprint)
    return embed


@torch.inference_mode()
def compute(stored: Stored[CLIPVision, CLIPVisionConfig]) -> Tensor:
    """The embedding, float32 [1, D], by the encoder itself."""
    encoder = stored.load(torch.float32, torch.device("cpu"))
    side = encoder.config.image_size
    return encoder(torch.zeros(1, encoder.config.num_channels, side, side))


def write(path: Path, embed: Tensor, fingerprint: str) -> None:
    """Keep the embedding with the fingerprint of its encoder."""
    with whole(path) as partial:
        save_file({KEY: embed.clone()}, partial, metadata={MADE_BY: fingerprint})


def _read(path: Path, fingerprint: str | None) -> Tensor | None:
    """The kept embedding, if it is there, whole, and of this encoder (None: of any)."""
    try:
        with safe_open(path, framework="pt") as file:
            if fingerprint is not None and (file.metadata() or {}).get(MADE_BY) != fingerprint:
                return None
        return load_file(path)[KEY]
    except (OSError, SafetensorError, KeyError):
        return None
