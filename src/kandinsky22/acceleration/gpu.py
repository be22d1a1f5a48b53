"""Networks on a GPU: channels last, each normalisation one kernel, steps replayed from CUDA graphs.

A step of the published U-Net at 512 x 512 is more than a thousand launches, and an H100 finishes them faster than they
are launched. Recording a step costs about what computing it does, so it is on by default. Compiling it (`compiled`),
which fuses what lies between the convolutions, takes minutes at first; the compiled step is then recorded.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.acceleration import fused_norm
from kandinsky22.acceleration.cuda_graphs import CudaGraphCache, first_line
from kandinsky22.acceleration.flags import uses
from kandinsky22.models.layers import Norm
from kandinsky22.models.movq import UNTILED_TENSORS, MoVQ
from kandinsky22.models.prior import Prefix, PriorTransformer
from kandinsky22.models.unet import UNet

DEVICES = ("cuda",)
COMPILE_MODE = "max-autotune-no-cudagraphs"  # CUDA graphs are ours: the same compiled or not, and they can be released
DECODE_MEMORY_SHARE = 8  # one part in so many of a GPU's memory may go to decoding a picture untiled


class GPUNorm(Norm):
    """In half precision without gradients, a kernel that reads x twice and writes it once; else the plain layer."""

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if not is_applicable(x) or not fused_norm.supports(x, scale) or self.weight.dtype != x.dtype:
            return super().forward(x, scale, shift)
        return fused_norm.group_norm(
            x, self.weight, self.bias, self.eps, scale, shift, groups=self.num_groups, silu=self.silu
        )


class GraphedModule(nn.Module):
    """A network whose steps are replayed from CUDA graphs, of its layers as they are or compiled."""

    graphs: CudaGraphCache
    compiled = False

    def step(self, plain: Callable[..., Any], x: Tensor, t: Tensor, cond: Any, *args: Any, **kwargs: Any) -> Any:
        """`plain(self, x, t, cond, ...)`, a method of the plain network.

        Precomputed timesteps are looked up in `cond` before the call, since a graph cannot depend on numbers.
        """
        if cond.timestep_cache is not None and (values := cond.timestep_cache.at(t)) is not None:
            cond = replace(cond, timestep_cache=CurrentTimestep(values))
            return self._graphed(plain, x, None, cond, *args, **kwargs)
        return self._graphed(plain, x, t.to(x.device, non_blocking=True), cond, *args, **kwargs)

    def _graphed(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.graphs(self, partial(self._compute, plain), *args, **kwargs)

    def _compute(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.compiled and not args[2].adapters:
            try:
                return compile_step(plain)(self, *args, **kwargs)
            except RuntimeError as error:
                self.compiled = False
                warnings.warn(f"the step could not be compiled, and runs uncompiled: {first_line(error)}", stacklevel=2)
        return plain(self, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class CurrentTimestep:
    """A timestep cache that holds the values of the current step alone."""

    values: Tensor

    def at(self, t: Tensor) -> Tensor:
        """The precomputed values, whatever `t` is."""
        return self.values


class GraphedUNet(GraphedModule, UNet):
    """A U-Net whose steps are replayed."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not is_applicable(x):
            return super().forward(x, *args, **kwargs)
        result: Tensor = self.step(UNet.forward, x, *args, **kwargs)
        return result

    def forward_cached(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not is_applicable(x):
            return super().forward_cached(x, *args, **kwargs)
        result: tuple[Tensor, Tensor] = self.step(UNet.forward_cached, x, *args, **kwargs)
        return result


class GraphedPrior(GraphedModule, PriorTransformer):
    """A prior whose steps are replayed. Texts are padded to full length, so that all have one shape."""

    _padded: tuple[Prefix, Prefix] | None = None  # the last prefix, and the same padded

    def forward(self, x: Tensor, t: Tensor, prefix: Prefix, *args: Any) -> Tensor:
        if not is_applicable(x):
            return super().forward(x, t, prefix, *args)
        if self._padded is None or self._padded[0] is not prefix:
            self._padded = prefix, pad_prefix(prefix, self.config.num_embeddings + 1)
        result: Tensor = self.step(PriorTransformer.forward, x, t, self._padded[1], *args)
        return result


class UntiledMoVQ(MoVQ):
    """A MoVQ that decodes a picture untiled where the GPU has the memory, since tiles are many small launches."""

    def decode(self, z: Tensor, *, tile: int | None = None) -> Tensor:
        pixels = z.shape[-2] * z.shape[-1] * self.config.factor**2
        needed = UNTILED_TENSORS * max(self.config.block_out_channels[:2]) * pixels * z.element_size()
        if tile is not None or not is_applicable(z) or needed > total_memory(z.device) // DECODE_MEMORY_SHARE:
            return super().decode(z, tile=tile)
        try:
            return super().decode(z, tile=pixels)
        except torch.OutOfMemoryError:  # other programs use this GPU
            return super().decode(z)


GPU_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    Norm: GPUNorm,
    UNet: GraphedUNet,
    PriorTransformer: GraphedPrior,
    MoVQ: UntiledMoVQ,
}
"""The class that each layer or network becomes on a GPU."""


def is_applicable(x: Tensor) -> bool:
    """Whether this module computes with x: on a GPU, without gradients or autocast, not while being compiled."""
    return x.device.type in DEVICES and not (
        torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda")
    )


def prepare(network: nn.Module, *, compiled: bool = False) -> None:
    """Have a network computed by what is fastest on a GPU, to which it may be moved before or after."""
    for module in network.modules():
        fast = GPU_LAYERS.get(type(module))
        if fast is not None and uses(
            "recording" if issubclass(fast, GraphedModule) else "normalisations" if fast is GPUNorm else ""
        ):
            module.__class__ = fast
        if isinstance(module, GraphedModule):
            module.graphs, module.compiled = CudaGraphCache(), compiled
    if any(isinstance(module, nn.Conv2d) for module in network.modules()):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def release_graphs(network: nn.Module) -> None:
    """Free the memory of a network's CUDA graphs."""
    for module in network.modules():
        if isinstance(module, GraphedModule):
            module.graphs.clear()
            vars(module).pop("_padded", None)


def pad_prefix(prefix: Prefix, length: int) -> Prefix:
    """A prefix with its texts padded to a length, and the padding masked."""
    missing = length - prefix.mask.shape[1]
    layers = tuple((F.pad(k, (0, 0, 0, missing)), F.pad(v, (0, 0, 0, missing))) for k, v in prefix.layers)
    return replace(prefix, layers=layers, mask=F.pad(prefix.mask, (0, missing)))


@cache
def compile_step(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A network's method, compiled by torch at its first call of each shape."""
    return torch.compile(plain, mode=COMPILE_MODE, dynamic=False)


@cache
def total_memory(device: torch.device) -> int:
    """Bytes of memory that a GPU has."""
    return int(torch.cuda.get_device_properties(device).total_memory)
