"""What a network becomes on a GPU: channels last, its normalisations one kernel, its steps played from recordings.

A step of the published U-Net at 512 x 512 is more than a thousand launches, and an H100 is done with them before they are
all made. Recording a step costs about what computing it does, so it is on by default. Compiling it (`compiled`), which fuses
what lies between the convolutions, takes minutes at first; what is recorded then is the compiled step.
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
from kandinsky22.acceleration.cuda_graphs import Replays, first_line
from kandinsky22.acceleration.flags import uses
from kandinsky22.models.layers import Norm
from kandinsky22.models.movq import UNTILED_TENSORS, MoVQ
from kandinsky22.models.prior import Prefix, PriorTransformer
from kandinsky22.models.unet import UNet

DEVICES = ("cuda",)
MODE = "max-autotune-no-cudagraphs"  # recording is ours: of one kind, compiled or not, and it can be forgotten
SHARE = 8  # one part in so many of a GPU's memory may go to decoding a picture whole


class GPUNorm(Norm):
    """A normalisation without gradients, in half precision, by two readings and one writing; else the plain one."""

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if not concern(x) or not fused_norm.fits(x, scale) or self.weight.dtype != x.dtype:
            return super().forward(x, scale, shift)
        return fused_norm.normalised(
            x, self.weight, self.bias, self.eps, scale, shift, groups=self.num_groups, silu=self.silu
        )


class Replayed(nn.Module):
    """A network whose steps are played from recordings, of its layers as they are or as the compiler has them."""

    replays: Replays
    compiles = False

    def step(self, plain: Callable[..., Any], x: Tensor, t: Tensor, told: Any, *others: Any, **named: Any) -> Any:
        """`plain(self, x, t, told, ...)`, a method of the plain network. Timesteps are looked up in what was `told` before: a
        recording cannot look at numbers."""
        if told.timestep_cache is not None and (known := told.timestep_cache.at(t)) is not None:
            return self._replayed(plain, x, None, replace(told, timestep_cache=Now(known)), *others, **named)
        return self._replayed(plain, x, t.to(x.device, non_blocking=True), told, *others, **named)

    def _replayed(self, plain: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return self.replays(self, partial(self._computed, plain), *arguments, **named)

    def _computed(self, plain: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self.compiles:
            try:
                return _compiled(plain)(self, *arguments, **named)
            except RuntimeError as error:
                self.compiles = False
                warnings.warn(f"the step could not be compiled, and runs as it is: {first_line(error)}", stacklevel=2)
        return plain(self, *arguments, **named)


@dataclass(frozen=True, slots=True)
class Now:
    """What was computed ahead of a run, of one step's timesteps."""

    values: Tensor

    def at(self, t: Tensor) -> Tensor:
        """That."""
        return self.values


class ReplayedUNet(Replayed, UNet):
    """A U-Net whose steps are played."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        if not concern(x):
            return super().forward(x, *others, **named)
        answer: Tensor = self.step(UNet.forward, x, *others, **named)
        return answer

    def forward_cached(self, x: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if not concern(x):
            return super().forward_cached(x, *others, **named)
        answer: tuple[Tensor, Tensor] = self.step(UNet.forward_cached, x, *others, **named)
        return answer


class ReplayedPrior(Replayed, PriorTransformer):
    """A prior whose steps are played. Texts are padded to full length, so that all have one shape."""

    _padded: tuple[Prefix, Prefix] | None = None  # what was padded last, and what became of it

    def forward(self, x: Tensor, t: Tensor, prefix: Prefix, *others: Any) -> Tensor:
        if not concern(x):
            return super().forward(x, t, prefix, *others)
        if self._padded is None or self._padded[0] is not prefix:
            self._padded = prefix, padded(prefix, self.config.num_embeddings + 1)
        answer: Tensor = self.step(PriorTransformer.forward, x, t, self._padded[1], *others)
        return answer


class WholeMoVQ(MoVQ):
    """A MoVQ that decodes a picture whole where the GPU has the memory, since tiles are many small launches."""

    def decode(self, z: Tensor, *, tile: int | None = None) -> Tensor:
        pixels = z.shape[-2] * z.shape[-1] * self.config.factor**2
        needed = UNTILED_TENSORS * max(self.config.block_out_channels[:2]) * pixels * z.element_size()
        if tile is not None or not concern(z) or needed > _memory(z.device) // SHARE:
            return super().decode(z, tile=tile)
        try:
            return super().decode(z, tile=pixels)
        except torch.OutOfMemoryError:  # others are on this GPU
            return super().decode(z)


FAST: dict[type[nn.Module], type[nn.Module]] = {
    Norm: GPUNorm,
    UNet: ReplayedUNet,
    PriorTransformer: ReplayedPrior,
    MoVQ: WholeMoVQ,
}


def concern(x: Tensor) -> bool:
    """Whether what is computed with x is for this module to compute: on a GPU, without gradients or autocast, and not being
    compiled."""
    return x.device.type in DEVICES and not (
        torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda")
    )


def prepare(network: nn.Module, *, compiled: bool = False) -> None:
    """Have a network compute by what is fastest on a GPU, to which it may be moved before or after."""
    for module in network.modules():
        fast = FAST.get(type(module))
        if fast is not None and uses(
            "recording" if issubclass(fast, Replayed) else "normalisations" if fast is GPUNorm else ""
        ):
            module.__class__ = fast
        if isinstance(module, Replayed):
            module.replays, module.compiles = Replays(), compiled
    if any(isinstance(module, nn.Conv2d) for module in network.modules()):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def forget(network: nn.Module) -> None:
    """Give back what a network's recordings hold."""
    for module in network.modules():
        if isinstance(module, Replayed):
            module.replays.forget()
            vars(module).pop("_padded", None)


def padded(prefix: Prefix, length: int) -> Prefix:
    """A prefix with its texts padded to a length, and the padding masked."""
    more = length - prefix.mask.shape[1]
    layers = tuple((F.pad(k, (0, 0, 0, more)), F.pad(v, (0, 0, 0, more))) for k, v in prefix.layers)
    return replace(prefix, layers=layers, mask=F.pad(prefix.mask, (0, more)))


@cache
def _compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(plain, mode=MODE, dynamic=False)


@cache
def _memory(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)
