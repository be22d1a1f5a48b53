"""Adapters with random numbers, in peft's layers beside diffusers' networks and in ours."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from kandinsky22.models.lora import Adapter, LowRank

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
UNET_TARGETS = [*ATTENTION, "add_k_proj", "add_v_proj"]
EVERY_LAYER = [  # of the U-Net
    *UNET_TARGETS,
    "conv1",
    "conv2",
    "conv_shortcut",
    "conv_in",
    "conv_out",
    "time_emb_proj",
    "linear_1",
    "linear_2",
    "image_embeds",
    "image_proj",
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inject(network: nn.Module, name: str = "default", *, seed: int = 0, **options: Any) -> nn.Module:
    """Give diffusers' network an adapter of peft with random numbers, a third as large as the weights."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it is not the first one
        inject_adapter_in_model(LoraConfig(init_lora_weights=False, **options), network, adapter_name=name)
    generator, scaling = torch.Generator().manual_seed(seed), options["lora_alpha"] / options["r"]
    if options.get("use_rslora"):
        scaling *= options["r"] ** 0.5
    for key, value in network.named_parameters():
        if f".{name}." in f"{key}." and "lora_" in key:
            noise = torch.randn(value.shape, generator=generator)
            with torch.no_grad():
                if "magnitude" in key:
                    value.mul_(1 + 0.1 * noise)
                else:
                    value.copy_(noise * value[0].numel() ** -0.5 * (1 if "lora_A" in key else 0.3 / scaling))
    network.requires_grad_(False)
    return network.eval()


def of_peft(network: nn.Module, name: str = "default") -> Adapter:
    """The adapter in peft's layers, as ours."""
    layers = {}
    for key, module in network.named_modules():
        parts: Mapping[str, Any] = getattr(module, "lora_A", {})
        if name in parts:
            layer: Any = module
            magnitudes = layer.lora_magnitude_vector
            magnitude = magnitudes[name].weight.detach().flatten() if name in magnitudes else None
            b = layer.lora_B[name].weight.flatten(1)
            layers[key] = LowRank(layer.lora_A[name].weight.detach(), b.detach(), layer.scaling[name], magnitude)
    return Adapter(layers)
