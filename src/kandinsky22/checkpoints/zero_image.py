"""The embedding of the all-zero picture: the only constant for which text-to-image would need the image encoder.

A model's folder may contain it beside its `model_index.json`, as the box does; otherwise it is computed once and
cached in the user's cache under the encoder's fingerprint. The model's folder is never written to.
"""

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kandinsky22.checkpoints import catalog, tensor_cache
from kandinsky22.checkpoints.network import Stored
from kandinsky22.checkpoints.safetensors_file import open_tensors
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
    if not encoder.is_dir() and (embed := _shipped_or_cached(prior, None, published)) is not None:
        return embed
    stored = Stored(encoder, CLIPVision, CLIPVisionConfig)
    encoder_id = published or stored.fingerprint
    if (embed := _shipped_or_cached(prior, encoder_id, encoder_id)) is not None:
        return embed
    embed = compute(stored)
    with contextlib.suppress(OSError):  # without a cache it is computed again next time
        tensor_cache.write(_cache_path(encoder_id), embed)
    return embed


def is_cached(encoder_id: str) -> bool:
    """Whether the embedding by an encoder is in the user's cache."""
    return tensor_cache.read(_cache_path(encoder_id)) is not None


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
    """Write the embedding into a model's folder, with the fingerprint of its encoder."""
    with atomic_write(path) as partial:
        save_file({TENSOR: embed.clone()}, partial, metadata={ENCODER_KEY: encoder_id})


def _cache_path(encoder_id: str | None) -> Path:
    return cache_dir() / "zero-image" / f"{encoder_id}.safetensors"


def _shipped_or_cached(prior: Path, shipped_of: str | None, cached_of: str | None) -> Tensor | None:
    """The embedding in a model's folder if it is of an encoder (None: of any), else that of an encoder in the cache."""
    embed = _read(prior / SHIPPED, shipped_of)
    return tensor_cache.read(_cache_path(cached_of)) if embed is None else embed


def _read(path: Path, encoder_id: str | None) -> Tensor | None:
    """The embedding in a model's file, if the file is complete and of this encoder (None: of any)."""
    try:
        with open_tensors(path) as file:
            if encoder_id is not None and (file.metadata() or {}).get(ENCODER_KEY) != encoder_id:
                return None
            embed: Tensor = file.get_tensor(TENSOR)
    except (OSError, SafetensorError, ValueError):
        return None
    return embed if embed.is_floating_point() and bool(embed.isfinite().all()) else None
