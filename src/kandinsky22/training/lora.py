"""Low-rank adapters in training (LoRA: Hu et al. 2021, arXiv:2106.09685; DoRA: Liu et al. 2024, arXiv:2402.09353).

An adapted layer's weight is computed from its frozen one, A and B, by a parametrization of torch. So objectives,
gradient checkpointing and mixed precision need not know of it: they see a network whose weights are other numbers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kandinsky22.models.lora import Adapter, LowRank

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
TARGETS = {"attention": ATTENTION, "all": ("",)}
"""Names for the layers that are adapted: by the ends of their names."""
LEARNING_RATE = 10.0  # times that of training all weights (Schulman et al. 2025, "LoRA Without Regret")
FILE = "lora.safetensors"  # of a run: its adapter, as diffusers reads it
_ORIGINAL, _LOW_RANK = ".parametrizations.weight.original", ".parametrizations.weight.0."


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """What is adapted: the rank, alpha (the scale is alpha / rank), whether magnitudes are learned too (DoRA), and the
    ends of the adapted layers' names."""

    rank: int
    alpha: float
    dora: bool = False
    targets: tuple[str, ...] = ATTENTION


class LowRankWeight(nn.Module):
    """The weight W + alpha / rank * B A of a layer; with DoRA, its rows have learned lengths.

    B starts at zero, so that training starts from the network as it is. Gradients through DoRA's norm are cut, as in
    section 4.3 of the paper.
    """

    def __init__(self, weight: Tensor, config: LoRAConfig) -> None:
        super().__init__()
        rank = min(config.rank, len(weight), weight[0].numel())
        self.a = nn.Parameter(weight.new_empty(rank, *weight.shape[1:]))
        self.b = nn.Parameter(weight.new_zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.register_buffer("scaling", torch.tensor(config.alpha / config.rank))
        self.magnitude = nn.Parameter(weight.detach().flatten(1).norm(dim=1)) if config.dora else None

    def forward(self, weight: Tensor) -> Tensor:
        scaling: Any = self.scaling
        total = weight + (scaling * (self.b @ self.a.flatten(1))).view_as(weight)
        if self.magnitude is None:
            return total
        ratio = self.magnitude / total.flatten(1).norm(dim=1).detach()
        return total * ratio.view(-1, *(1,) * (weight.ndim - 1))


def adapt(network: nn.Module, config: LoRAConfig, seed: int = 0) -> nn.Module:
    """The same network, of which only low-rank adapters of some layers are trained.

    Raises `ValueError` for a target that is no layer.
    """
    network.requires_grad_(False)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    named = () if config.targets in TARGETS.values() else config.targets  # the prior has no add_k_proj
    if missing := [end for end in named if not any(_ends(name, end) for name in layers)]:
        choices = ", ".join(TARGETS)
        raise ValueError(f"no layer's name ends in {missing[0]!r}; --targets may be {choices}, or ends of names")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        for name, module in layers.items():
            if any(_ends(name, end) for end in config.targets):
                weight: Any = module.weight
                parametrize.register_parametrization(module, "weight", LowRankWeight(weight, config))
    return network


def adapter_of(state: Mapping[str, Tensor]) -> Adapter:
    """The adapter in the state dict of an adapted network."""
    layers = {}
    for key in state:
        if key.endswith(f"{_LOW_RANK}a"):
            name = key.removesuffix(f"{_LOW_RANK}a")
            b, scaling, magnitude = (state.get(f"{name}{_LOW_RANK}{part}") for part in ("b", "scaling", "magnitude"))
            assert b is not None and scaling is not None
            layers[name] = LowRank(state[key], b, float(scaling), magnitude)
    return Adapter(layers)


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the plain network with the adapted weights; that of a plain network is unchanged."""
    layers = adapter_of(state).layers
    result = {}
    for key, value in state.items():
        if key.endswith(_ORIGINAL):
            name = key.removesuffix(_ORIGINAL)
            result[f"{name}.weight"] = layers[name].merged(value)
        elif _LOW_RANK not in key:
            result[key] = value
    return result


def trained(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of an adapted network's state dict the adapter's part; that of a plain network is unchanged."""
    return {key: value for key, value in state.items() if _LOW_RANK in key} or dict(state)


def frozen_by_adapter(network: nn.Module) -> set[str]:
    """The names of an adapted network's parameters that are not trained, and so need not be saved; else none."""
    if not any(isinstance(module, LowRankWeight) for module in network.modules()):
        return set()
    return {name for name, parameter in network.named_parameters() if not parameter.requires_grad}


def _ends(name: str, end: str) -> bool:
    return not end or name == end or name.endswith(f".{end}")
