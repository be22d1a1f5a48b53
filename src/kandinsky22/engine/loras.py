"""The adapters of requests' LoRAs: read when first needed, and placed where the networks compute."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from kandinsky22.checkpoints import lora_files
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.lora_files import PRIOR, TEXT_ENCODER, UNET, LoRAFile
from kandinsky22.checkpoints.network import NetworkSource
from kandinsky22.engine.placement import Networks
from kandinsky22.models.lora import Adapter, Applied, Stack
from kandinsky22.request.lora import LoRA, fingerprint

MAX_FILES = 16  # that are remembered, the last used ones


class LoadedLoRAs:
    """The LoRA files that the requests of a model name, by their fingerprints."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self._files: OrderedDict[str, LoRAFile] = OrderedDict()
        self._adapters: dict[tuple[str, NetworkSource[Any, Any]], Adapter] = {}

    def check(self, loras: Iterable[LoRA], networks: dict[str, NetworkSource[Any, Any]]) -> None:
        """Raises `ValueError` for a LoRA whose file is missing, changed, unreadable, or for other networks than these.

        networks: by the names in `lora_files.NETWORKS`.
        """
        for lora in loras:
            for network in self._read(lora).layers:
                self._adapter(lora, network, networks[network])

    def changes_embeddings(self, lora: LoRA) -> bool:
        """Whether it changes what the prior or the text encoder computes."""
        return lora.scale_of_prior != 0 and not self._read(lora).layers.keys().isdisjoint((PRIOR, TEXT_ENCODER))

    def stack(self, loras: Iterable[LoRA], network: str, stored: NetworkSource[Any, Any]) -> Stack:
        """The adapters for a row of a network's calls."""
        applied = []
        for lora in loras:
            scale = lora.scale if network == UNET else lora.scale_of_prior
            if scale != 0 and network in self._read(lora).layers:
                applied.append(Applied(self._adapter(lora, network, stored), scale))
        return tuple(applied)

    def _adapter(self, lora: LoRA, network: str, stored: NetworkSource[Any, Any]) -> Adapter:
        """A LoRA's adapter for a network. The same object each time, since calls with one adapter are grouped."""
        key = lora.sha256, stored
        if key not in self._adapters:
            adapter = self._read(lora).adapter(network, stored.outline)
            assert adapter is not None
            self._adapters[key] = adapter.to(self.networks.device, self.networks.dtype)
        return self._adapters[key]

    def _read(self, lora: LoRA) -> LoRAFile:
        """Its file. Raises `ValueError`."""
        if lora.sha256 not in self._files:
            path = lora.file
            if fingerprint(path) != lora.sha256:
                raise CheckpointError(f"{path} has changed since the request was made; make the request again")
            self._files[lora.sha256] = lora_files.read(path)
            if len(self._files) > MAX_FILES:
                oldest, _ = self._files.popitem(last=False)
                self._adapters = {key: adapter for key, adapter in self._adapters.items() if key[0] != oldest}
        self._files.move_to_end(lora.sha256)
        return self._files[lora.sha256]
