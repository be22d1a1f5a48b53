"""Files of low-rank adapters with random numbers, for the networks of a model on disk."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kandinsky22.checkpoints import lora_files
from kandinsky22.checkpoints.model import StoredDecoder, StoredPrior
from kandinsky22.models.lora import Adapter, LowRank

LAYERS = ("to_q", "to_out.0", "add_k_proj", "conv1", "q_proj", "fc1")


def write_lora(path: Path, model: Path, networks: Iterable[str] = ("unet",), *, seed: int = 0, rank: int = 2) -> Path:
    """Write a file that changes these networks (`lora_files.NETWORKS`) by a third of their weights."""
    outlines: dict[str, Any] = {"unet": StoredDecoder(model / "decoder").unet, **StoredPrior(model / "prior").networks}
    adapters = {name: random_adapter(outlines[name].outline, seed=seed, rank=rank) for name in networks}
    return lora_files.write(path, adapters)


def random_adapter(network: nn.Module, *, seed: int = 0, rank: int = 2, layers: Iterable[str] = LAYERS) -> Adapter:
    """An adapter of a network's layers whose names end in `layers`."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(tuple(layers)):
            shape: Any = module.weight.shape
            a = torch.randn(rank, *shape[1:], generator=generator) * shape[1:].numel() ** -0.5
            found[name] = LowRank(a, torch.randn(shape[0], rank, generator=generator) * 0.3 * rank**-0.5)
    return Adapter(found)
