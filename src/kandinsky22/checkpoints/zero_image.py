"""The embedding of the all-zero picture: the one constant for which text-to-image would need the image encoder.

A model's folder may ship it beside its `model_index.json`, as the box does; else it is computed once and kept in the
user's cache under the encoder's fingerprint. The model's folder is never written to.
"""

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.store import Stored
from kandinsky22.files import atomic_write
from kandinsky22.models.clip import CLIPVision, CLIPVisionConfig

SHIPPED = "zero_image_embed.safetensors"
KEY, MADE_BY = "zero_image_embed", "encoder"
ENCODER = "image_encoder"


def zero_image_embed(prior: Path) -> Tensor:
    """float32 [1, D], for the prior pipeline in `prior`. Zeros come after normalisation: the picture is a middle grey.

    Where the folder has no image encoder, what it ships is trusted. Raises `CheckpointError` where it has neither.
    """
    if not (prior / ENCODER).is_dir():
        for path, name in ((prior / SHIPPED, None), (_kept(published := catalog.published_encoder(prior)), published)):
            if (embed := _read(path, name)) is not None:
                return embed
    stored = Stored(prior / ENCODER, CLIPVision, CLIPVisionConfig)
    name = catalog.published_encoder(prior) or stored.fingerprint
    for path in (prior / SHIPPED, _kept(name)):
        if (embed := _read(path, name)) is not None:
            return embed
    embed = compute(stored)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not pictures
        write(_kept(name), embed, name)
    return embed


def is_kept(encoder: str) -> bool:
    """Whether the embedding by an encoder of this name is in the cache."""
    return _read(_kept(encoder), encoder) is not None


def _kept(encoder: str | None) -> Path:
    return catalog.cache() / "zero-image" / f"{encoder}.safetensors"


@torch.inference_mode()
def compute(stored: Stored[CLIPVision, CLIPVisionConfig]) -> Tensor:
    """The embedding, float32 [1, D], by the encoder itself.

    Computed in float32, and yet the encoder stays as its file has it, half the size where that is float16: each of its
    parts is widened only while it runs.
    """
    encoder = stored.load(stored.dtype, torch.device("cpu"))
    tower: Any = encoder.vision_model
    side = encoder.config.image_size
    h = torch.zeros(1, encoder.config.num_channels, side, side)
    for part in (tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers, tower.post_layernorm):
        h = copy.deepcopy(part).float()(h)
    return copy.deepcopy(encoder.visual_projection).float()(h[:, 0])


def write(path: Path, embed: Tensor, fingerprint: str) -> None:
    """Keep the embedding with the fingerprint of its encoder."""
    with atomic_write(path) as partial:
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
