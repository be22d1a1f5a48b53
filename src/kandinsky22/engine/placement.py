"""Where networks are while a request is carried out, and when they come and go.

"keep": what was read stays on the device. "offload": a network is there only while a stage needs it, so a run needs
room for its largest stage and not for the sum. "sequential": the weights stay in the processor's memory, and a large
one is on the device only while it is used. The numbers are the same in all three. On a CPU there is nowhere else to be:
there a network that leaves is let go and read again when it is next needed, and "sequential" is "offload".

Networks that come and go are for reading: what is changed in one is lost when it leaves.
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
COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # in the environment, where torch keeps what it compiled
SMALL_NETWORK = (
    256 << 20
)  # bytes; one is moved whole even in "sequential". MoVQ is one: its tiles look at a weight often
SMALL_WEIGHT = 256 << 10  # bytes; those of a large network that are not worth a journey stay on the device


class Networks:
    """The networks that are loaded, by the `NetworkSource` they come from. Raises `ValueError` for an unknown placement, and
    for what cannot be compiled.

    dtype: of their weights, which is `held`; what they are to be given is `dtype`, a wider one where the device has no
    instructions for that. accelerated: whether they compute by what is fastest here (see `acceleration`); None is
    wherever it can be. compiled: by torch's compiler too, on a GPU.
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
                    "compiling is for networks that stay on cuda, accelerated; leave compiled out, or use --placement keep"
                )
            os.environ.setdefault(COMPILED, str(cache_dir() / "compiled"))
        self._loaded: dict[NetworkSource[Any, Any], nn.Module] = {}
        self._homes: dict[
            NetworkSource[Any, Any], Mapping[str, Tensor]
        ] = {}  # on the CPU, of networks that are moved whole
        self._away: set[NetworkSource[Any, Any]] = set()  # of those, the ones on the device
        self._at_work: set[NetworkSource[Any, Any]] = set()  # on a CPU, those that a stage is not done with

    @torch.inference_mode(False)  # what is made here may be trained later
    def get(self, stored: NetworkSource[N, C]) -> N:
        """The network, ready to compute on the device; it is read when it is first needed. On a CPU, what it frees
        while it computes is kept for it until it leaves."""
        if stored not in self._loaded:
            free_unused()  # what left a moment ago may only now be free
            self._loaded[stored] = self._read(stored)
        network: Any = self._loaded[stored]
        if stored in self._homes and stored not in self._away:
            moved = {name: value.to(self.device) for name, value in self._homes[stored].items()}
            network.load_state_dict(moved, assign=True)
            self._away.add(stored)
        if self.accelerated and self.device.type == "cpu":
            self._at_work.add(stored)
            allocator.keep_freed(self)
        return network

    @torch.inference_mode(False)
    def release(self, stored: NetworkSource[N, C]) -> None:
        """A stage is done with a network. Whoever still has it must not use it before the next `get`, unless it is
        kept."""
        self._at_work.discard(stored)
        if not self._at_work:
            allocator.stop_keeping(self)
        if self.placement == "keep":
            return
        if stored in self._away:
            acceleration.release_graphs(self._loaded[stored])
            self._loaded[stored].load_state_dict(self._homes[stored], assign=True)
            self._away.remove(stored)
        if self.device.type == "cpu":
            self._loaded.pop(stored, None)
        free_unused()

    def is_on_device(self, stored: NetworkSource[N, C]) -> bool:
        """Whether a network takes room on the device already."""
        return stored in self._loaded and (stored not in self._homes or stored in self._away)

    def bytes_to_load(self, needed: Iterable[NetworkSource[Any, Any]]) -> int:
        """How many bytes networks will take on the device, at once, for a run that needs these."""
        coming = [self._bytes(stored) for stored in needed if not self.is_on_device(stored)]
        if self.placement == "sequential" and self.device.type != "cpu":
            coming = [min(count, SMALL_NETWORK) for count in coming]
        return sum(coming) if self.placement == "keep" else max(coming, default=0)

    def described(self) -> str:
        """What accelerates them; it shows in last bits."""
        return acceleration.describe(self.weight_dtype, self.device, compiled=self.compiled)

    def _read(self, stored: NetworkSource[N, C]) -> N:
        whole = self.placement == "keep" or self.device.type == "cpu"
        network = stored.load(self.weight_dtype, self.device if whole else CPU)
        if not whole and self.placement == "sequential" and self._bytes(stored) > SMALL_NETWORK:
            visit(network, self.device)
            return network
        if self.accelerated:
            room = acceleration.filter_budget(self.device)
            acceleration.prepare(network, budget=room, dtype=self.dtype, device=self.device, compiled=self.compiled)
        if not whole:
            self._homes[stored] = network.state_dict()
        return network

    def _bytes(self, stored: NetworkSource[Any, Any]) -> int:
        """What a network holds: its weights, and other forms of them."""
        room = acceleration.filter_budget(self.device)
        more = acceleration.extra_bytes(stored.outline, self.weight_dtype, room) if self.accelerated and room else 0
        return stored.elements * self.weight_dtype.itemsize + more


class _Visit(nn.Module):
    """What a weight is to whoever looks at it: a copy on the device, gone when it was used."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(self.device)


@torch.inference_mode(False)
def visit(network: nn.Module, device: torch.device) -> None:
    """Keep a network's large weights where they are and bring each to the device when it is used; the rest moves
    there."""
    visiting = _Visit(device)
    for module in list(network.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.nbytes > SMALL_WEIGHT:
                parametrize.register_parametrization(module, name, visiting, unsafe=True)
            else:
                setattr(module, name, nn.Parameter(weight.to(device), requires_grad=False))


def free_unused() -> None:
    """Return memory that is free but still held, the device's and the processor's, to the system."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    allocator.free_unused()
