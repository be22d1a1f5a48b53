"""Sources of randomness: values that draw standard normal noise. Torch's global generator is used only on request.

`Noise` gives every image its own stream; `SharedNoise` draws in the order of diffusers' `randn_tensor`. Both are what
samplers call `noise`: `noise(x)` is like x. `draw` makes noise for a shape, such as the state a run starts from.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kandinsky22.diffusion.schedule import to_device


class Noise:
    """One stream of noise per image, identified by the image's seed and the stage that draws ("prior", "decoder", ...).

    Row k is what seed k would draw alone, whatever else is in the batch, and no stage moves another one's stream. Drawn
    in float32 on the CPU and then cast and moved, so that a seed means the same on every device.

    `towards` names other seeds, to whose noise each row is turned by a strength in [0, 1]: along a quarter circle, on
    which two independent standard normal draws stay standard normal.
    """

    def __init__(
        self, seeds: Sequence[int], stage: str, *, towards: Sequence[int] | None = None, strength: float = 0.0
    ) -> None:
        self._generators = [torch.Generator("cpu").manual_seed(_stream(seed, stage)) for seed in seeds]
        self._other = None if towards is None or strength == 0 else Noise(towards, stage)
        self._angle = strength * math.pi / 2

    def __call__(self, x: Tensor) -> Tensor:
        """The next noise for x [len(seeds), ...], like x."""
        return self.draw(tuple(x.shape), x.dtype, x.device)

    def draw(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """The next noise of this shape, [len(seeds), ...]. Raises ValueError where rows and seeds differ in number."""
        if shape[0] != len(self._generators):
            raise ValueError(f"{shape[0]} rows of noise need as many seeds, got {len(self._generators)}")
        rows = [torch.randn(tuple(shape[1:]), generator=g, dtype=torch.float32, device="cpu") for g in self._generators]
        drawn = torch.stack(rows)
        if self._other is not None:
            drawn = math.cos(self._angle) * drawn + math.sin(self._angle) * self._other.draw(shape)
        return to_device(drawn, device, dtype)


class SharedNoise:
    """Noise from a caller's generators, in the order in which diffusers' `randn_tensor` draws it.

    One generator (or a list of one) draws whole tensors; a list draws the rows, one generator each; None draws from
    torch's global state. Drawn in the dtype that is asked for: in half precision, torch's draws are the rounded float32
    ones only where their number is a multiple of 16.
    """

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> None:
        self._generators = [generator] if generator is None or isinstance(generator, torch.Generator) else [*generator]

    def __call__(self, x: Tensor) -> Tensor:
        """The next noise, like x [B, ...]."""
        return self.draw(tuple(x.shape), x.dtype, x.device)

    def draw(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """The next noise of this shape, [B, ...].

        Raises ValueError where a list has neither one generator nor one per row (randn_tensor drops what is too many),
        and where a GPU's generator is to fill a tensor elsewhere.
        """
        count, whole = len(self._generators), tuple(shape)
        if count == 1:
            return _randn(whole, self._generators[0], dtype, torch.device(device))
        if count != whole[0]:
            raise ValueError(f"got {count} generators for {whole[0]} rows; pass one generator, or one for each row")
        rows = [_randn((1, *whole[1:]), g, dtype, torch.device(device)) for g in self._generators]
        return torch.cat(rows)


def _randn(
    shape: tuple[int, ...], generator: torch.Generator | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    source = device if generator is None else generator.device
    if source.type not in ("cpu", device.type):
        raise ValueError(f"a {source} generator cannot draw for a tensor on {device}; use a CPU generator")
    return to_device(torch.randn(shape, generator=generator, dtype=dtype, device=source), device)


def _stream(seed: int, stage: str) -> int:
    """A seed for torch from (seed, stage), the same in every process and version of Python."""
    return int.from_bytes(hashlib.sha256(f"{stage}:{seed}".encode()).digest()[:8], "big", signed=True)
