"""A network of a pipeline: in its folder, or passed in as an object; pipelines that have the part share the network."""

import copy
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.network import Stored
from kandinsky22.checkpoints.other_libraries import adopt_network
from kandinsky22.models.clip import CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.config import Config
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig

CPU = torch.device("cpu")


class Kind(NamedTuple):
    """A kind of network: its class, its configuration's class, and the name of its weight file."""

    network: type[Any]
    config: type[Config]
    file: str


KINDS = {
    "unet": Kind(UNet, UNetConfig, "diffusion_pytorch_model"),
    "movq": Kind(MoVQ, MoVQConfig, "diffusion_pytorch_model"),
    "prior": Kind(PriorTransformer, PriorConfig, "diffusion_pytorch_model"),
    "text_encoder": Kind(CLIPText, CLIPTextConfig, "model"),
    "image_encoder": Kind(CLIPVision, CLIPVisionConfig, "model"),
}
"""The networks, by the names of their folders."""


class Part:
    """A network of a pipeline, with the device and dtype in which it is wanted. A `NetworkSource`.

    A folder is opened by `open`, which maps its weights; they are converted and moved when the network is first needed.
    shared: whether all pipelines that have the part use the same network; otherwise each gets its own, to move it
    independently. Raises `CheckpointError` as `Stored` does, when it is opened or first used.
    """

    def __init__(self, kind: str, folder: Path | None, variant: str | None = None) -> None:
        self.kind, self.variant = KINDS[kind], variant
        self.folder = folder or Path(kind)
        self.passed_in = folder is None
        self.shared = True
        self.network: nn.Module | None = None  # in use
        self.view: Any = None  # the network as programs written for diffusers call it
        self._mapped: nn.Module | None = None  # with the weights of the folder, until it is in use
        self._device, self._dtype = CPU, torch.float32
        self._loaded: tuple[torch.device, torch.dtype] | None = None  # how this part has loaded or placed the network

    @classmethod
    def of(cls, name: str, value: Any) -> Self:
        """The part `name` from a part, or a network of this package, diffusers or transformers.

        Raises `ValueError` for anything else.
        """
        if isinstance(value, cls):
            return value
        kind = KINDS[name]
        if not isinstance(getattr(value, "_orig_mod", value), kind.network):  # torch.compile wraps it
            if not isinstance(value, nn.Module) or not hasattr(value, "config"):
                raise ValueError(
                    f"{name} must be a {kind.network.__name__} of kandinsky22, or such a network of diffusers or "
                    f"transformers, got {type(value).__name__}"
                )
            value = adopt_network(value, kind.network, kind.config)
        part = cls(name, None)
        part.network = value
        part._notice_moves()
        return part

    @cached_property
    def stored(self) -> Stored[Any, Any]:
        """The network in its folder."""
        return Stored(self.folder, self.kind.network, self.kind.config, self.variant)

    def open(self) -> None:
        """Map the weights of the folder, which may then be deleted. Raises `CheckpointError`."""
        if self.network is None and self._mapped is None:
            self._mapped = self.stored.load(self.stored.dtype, CPU)

    @property
    def outline(self) -> Any:
        """The network: on the meta device, or the one that was loaded."""
        return self.stored.outline if self.network is None else self.network

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self.outline.config

    @property
    def elements(self) -> int:
        """How many numbers the network's parameters and buffers have."""
        return sum(value.numel() for value in self.outline.state_dict().values())

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify the weights. Raises `CheckpointError` for a network passed in."""
        if self.passed_in:
            raise CheckpointError("a network that was passed in has no fingerprint; save it, and load its folder")
        return self.stored.fingerprint

    @property
    def device(self) -> torch.device:
        """Where the network is wanted."""
        self._notice_moves()
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the network's weights are wanted."""
        self._notice_moves()
        return self._dtype

    def place(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """Have the network on a device, in a dtype, or both, for all pipelines that share it; None: as it is."""
        self._notice_moves()
        self._device, self._dtype = device or self._device, dtype or self._dtype
        if self.network is not None and self.shared:
            self.network.to(self._device, self._dtype)
            self._loaded = self.location

    def load(self, dtype: torch.dtype, device: torch.device) -> Any:
        """The network, in a dtype on a device: the shared one, moved there, or one for the caller alone."""
        if self.network is not None:
            network = self.network.to(device, dtype)
        elif self.shared:
            self.open()
            network = (self._mapped or self.stored.outline).to(device, dtype)
        elif self._mapped is None:
            network = self.stored.load(dtype, device)
        else:
            network = copy.deepcopy(self.stored.outline)
            network.load_state_dict(self._mapped.state_dict(), assign=True)
            network = network.eval().requires_grad_(False).to(device, dtype)
        self.network = network if self.shared or self.passed_in else None
        if self.network is not None:
            self._mapped, self._loaded = None, self.location
        return network

    def weights(self) -> nn.Module:
        """The network as it is, in use or in its folder, not compiled."""
        self.open()
        network: Any = self.network if self._mapped is None else self._mapped
        inner: nn.Module = getattr(network, "_orig_mod", network)
        return inner

    @property
    def location(self) -> tuple[torch.device, torch.dtype] | None:
        """The device and dtype of the network, if it is loaded."""
        if self.network is None:
            return None
        first = next(self.network.parameters())
        return first.device, first.dtype

    def _notice_moves(self) -> None:
        """Take over where the network is, if its user has moved it."""
        location = self.location
        if location is not None and location != self._loaded:
            self._loaded = location
            self._device, self._dtype = location
