"""Where networks are while requests run: loaded, moved to the device, released.

"keep": a network that was loaded stays on the device. "offload": a network is there only while a stage needs it, so a
run needs memory for its largest stage instead of the sum. "sequential": weights stay in main memory, and a large weight
is on the device only while it is used. All three compute the same numbers. On a CPU there is no other place: a network
that is released is freed and loaded again when it is next needed, and "sequential" means "offload".

Networks that are moved or freed are for inference: changes to their weights are lost when they are released.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kandinsky22 import acceleration
from kandinsky22.acceleration import allocator
from kandinsky22.checkpoints.network import NetworkSource
from kandinsky22.files import cache_dir
from kandinsky22.models.config import Config

N = TypeVar("N", bound=nn.Module)
C = TypeVar("C", bound=Config)
Placement = Literal["keep", "offload", "sequential"]
CPU = torch.device("cpu")
COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # the environment variable for the folder of torch's compiled code
# Bytes. A smaller network is moved whole even with "sequential", such as MoVQ, whose tiles use each weight many times.
SMALL_NETWORK = 256 << 20
# bytes; smaller weights of a large network stay on the device, as moving them does not pay off
SMALL_WEIGHT = 256 << 10


class Networks:
    """The loaded networks, by the `NetworkSource` they come from.

    dtype: of the weights (`weight_dtype`). Inputs must be in `self.dtype`, which is wider if the device has no
    instructions for that dtype. accelerated: whether to use the fast implementations of `acceleration`; None: wherever
    possible. compiled: also compile with torch, on a GPU. Raises `ValueError` for an unknown placement, and for
    networks that cannot be compiled.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        placement: Placement = "keep",
        *,
        accelerated: bool | None = None,
        compiled: bool = False,
    ) -> None:
        if placement not in get_args(Placement):
            raise ValueError(f"placement must be one of {', '.join(get_args(Placement))}, got {placement!r}")
        acceleration.request_huge_pages()
        self.device, self.weight_dtype, self.placement = device, dtype, placement
        self.accelerated = acceleration.is_wanted(device, accelerated)
        self.dtype = acceleration.compute_dtype(dtype, device) if self.accelerated else dtype
        self.compiled = compiled
        if compiled:
            if device.type != "cuda" or not self.accelerated or placement != "keep":
                raise ValueError(
                    "compiled networks must be accelerated and stay on cuda; use --placement keep, or omit compiled"
                )
            os.environ.setdefault(COMPILED, str(cache_dir() / "compiled"))
        self._loaded: dict[NetworkSource[Any, Any], nn.Module] = {}
        self._cpu_weights: dict[NetworkSource[Any, Any], Mapping[str, Tensor]] = {}  # of networks that are moved whole
        self._moved: set[NetworkSource[Any, Any]] = set()  # of those, the ones on the device now
        self._in_use: set[NetworkSource[Any, Any]] = set()  # on a CPU, the ones between `get` and `release`

    @torch.inference_mode(False)  # its parameters may be trained later
    def get(self, stored: NetworkSource[N, C]) -> N:
        """The network, ready to compute on the device; it is loaded when it is first needed.

        On a CPU, memory that it frees while computing is reused by it until `release`.
        """
        if stored not in self._loaded:
            free_unused()  # a network released just before may only be free now
            self._loaded[stored] = self._read(stored)
        network: Any = self._loaded[stored]
        if stored in self._cpu_weights and stored not in self._moved:
            moved = {name: value.to(self.device) for name, value in self._cpu_weights[stored].items()}
            network.load_state_dict(moved, assign=True)
            self._moved.add(stored)
        if self.accelerated and self.device.type == "cpu":
            self._in_use.add(stored)
            allocator.keep_freed(self)
        return network

    @torch.inference_mode(False)
    def release(self, stored: NetworkSource[N, C]) -> None:
        """A stage is done with a network, which is not used before the next `get`, unless placement is "keep"."""
        self._in_use.discard(stored)
        if not self._in_use:
            allocator.stop_keeping(self)
        if self.placement == "keep":
            return
        if stored in self._moved:
            acceleration.release_graphs(self._loaded[stored])
            self._loaded[stored].load_state_dict(self._cpu_weights[stored], assign=True)
            self._moved.remove(stored)
        if self.device.type == "cpu":
            self._loaded.pop(stored, None)
        free_unused()

    def is_on_device(self, stored: NetworkSource[N, C]) -> bool:
        """Whether a network is on the device."""
        return stored in self._loaded and (stored not in self._cpu_weights or stored in self._moved)

    def bytes_to_load(self, needed: Iterable[NetworkSource[Any, Any]]) -> int:
        """The bytes that must still be loaded onto the device at the same time, for a run that needs these networks."""
        coming = [self._bytes(stored) for stored in needed if not self.is_on_device(stored)]
        if self.placement == "sequential" and self.device.type != "cpu":
            coming = [min(count, SMALL_NETWORK) for count in coming]
        return sum(coming) if self.placement == "keep" else max(coming, default=0)

    def described(self) -> str:
        """How the networks are accelerated, which shows in the last bits of results."""
        return acceleration.describe(self.weight_dtype, self.device, compiled=self.compiled)

    def _read(self, stored: NetworkSource[N, C]) -> N:
        on_device = self.placement == "keep" or self.device.type == "cpu"
        network = stored.load(self.weight_dtype, self.device if on_device else CPU)
        if not on_device and self.placement == "sequential" and self._bytes(stored) > SMALL_NETWORK:
            stream_weights(network, self.device)
            return network
        if self.accelerated:
            room = acceleration.filter_budget(self.device)
            acceleration.prepare(network, budget=room, dtype=self.dtype, device=self.device, compiled=self.compiled)
        if not on_device:
            self._cpu_weights[stored] = network.state_dict()
        return network

    def _bytes(self, stored: NetworkSource[Any, Any]) -> int:
        """The memory of a network: its weights and their transformed copies."""
        room = acceleration.filter_budget(self.device)
        more = acceleration.extra_bytes(stored.outline, self.weight_dtype, room) if self.accelerated and room else 0
        return stored.elements * self.weight_dtype.itemsize + more


class _CopyToDevice(nn.Module):
    """A parametrization: a weight is read as a copy on the device, which is freed after use."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(self.device)


@torch.inference_mode(False)
def stream_weights(network: nn.Module, device: torch.device) -> None:
    """Leave a network's large weights in main memory, each copied to the device when it is used; move the others."""
    copying = _CopyToDevice(device)
    for module in list(network.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.nbytes > SMALL_WEIGHT:
                parametrize.register_parametrization(module, name, copying, unsafe=True)
            else:
                setattr(module, name, nn.Parameter(weight.to(device), requires_grad=False))


def free_unused() -> None:
    """Return unused memory of the device and of this process to the system."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    allocator.free_unused()
