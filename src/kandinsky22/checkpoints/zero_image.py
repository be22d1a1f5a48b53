"""The embedding of the all-zero picture: the only constant for which text-to-image would need the image encoder.

A model's folder may contain it beside its `model_index.json`, as the box does; otherwise it is computed once and
cached in the user's cache under the encoder's fingerprint. The model's folder is never written to.
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
from kandinsky22.checkpoints.network import Stored
from kandinsky22.files import atomic_write, cache_dir
from kandinsky22.models.clip import CLIPVision, CLIPVisionConfig

SHIPPED = "zero_image_embed.safetensors"
TENSOR, ENCODER_KEY = "zero_image_embed", "encoder"  # in the file, and in its metadata


def zero_image_embed(prior: Path) -> Tensor:
    """float32 [1, D], for the prior pipeline in the folder `prior`.

    Pixels are zero after CLIP's normalisation: the picture is a medium grey. Where the folder has no image encoder, the
    embedding that it contains is trusted. Raises `CheckpointError` where it has neither.
    """
    encoder = prior / catalog.IMAGE_ENCODER
    published = catalog.published_encoder_id(prior)
    if not encoder.is_dir():
        for path, expected in ((prior / SHIPPED, None), (_cache_path(published), published)):
            if (embed := _read(path, expected)) is not None:
                return embed
    stored = Stored(encoder, CLIPVision, CLIPVisionConfig)
    encoder_id = published or stored.fingerprint
    for path in (prior / SHIPPED, _cache_path(encoder_id)):
        if (embed := _read(path, encoder_id)) is not None:
            return embed
    embed = compute(stored)
    with contextlib.suppress(OSError):  # without a cache it is computed again next time
        write(_cache_path(encoder_id), embed, encoder_id)
    return embed


def is_cached(encoder_id: str) -> bool:
    """Whether the embedding by an encoder is in the user's cache."""
    return _read(_cache_path(encoder_id), encoder_id) is not None


@torch.inference_mode()
def compute(stored: Stored[CLIPVision, CLIPVisionConfig]) -> Tensor:
    """The embedding, float32 [1, D], by the encoder itself.

    It is computed in float32, but the encoder stays in its file's dtype, half the size where that is float16: each
    module is converted only while it runs.
    """
    encoder = stored.load(stored.dtype, torch.device("cpu"))
    tower: Any = encoder.vision_model
    side = encoder.config.image_size
    h = torch.zeros(1, encoder.config.num_channels, side, side)
    for module in (tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers, tower.post_layernorm):
        h = copy.deepcopy(module).float()(h)
    return copy.deepcopy(encoder.visual_projection).float()(h[:, 0])


def write(path: Path, embed: Tensor, encoder_id: str) -> None:
    """Write the embedding, with the fingerprint of its encoder."""
    with atomic_write(path) as partial:
        save_file({TENSOR: embed.clone()}, partial, metadata={ENCODER_KEY: encoder_id})


def _cache_path(encoder_id: str | None) -> Path:
    return cache_dir() / "zero-image" / f"{encoder_id}.safetensors"


def _read(path: Path, encoder_id: str | None) -> Tensor | None:
    """The embedding in a file, if the file is complete and of this encoder (None: of any)."""
    try:
        with safe_open(path, framework="pt") as file:
            if encoder_id is not None and (file.metadata() or {}).get(ENCODER_KEY) != encoder_id:
                return None
        return load_file(path)[TENSOR]
    except (OSError, SafetensorError, KeyError):
        return None
