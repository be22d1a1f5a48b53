"""The attributes and methods of diffusers' pipelines that concern no computation."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from kandinsky22.checkpoints import components
from kandinsky22.pipelines.progress import ProgressBar
from kandinsky22.pipelines.switches import without_effect

SWITCHES = (
    "enable_xformers_memory_efficient_attention",
    "disable_xformers_memory_efficient_attention",
    "set_use_memory_efficient_attention_xformers",
    "enable_attention_slicing",
    "disable_attention_slicing",
    "set_attention_slice",
    "enable_vae_slicing",
    "disable_vae_slicing",
    "enable_vae_tiling",
    "disable_vae_tiling",
    "fuse_qkv_projections",
    "unfuse_qkv_projections",
)
"""Methods that only change how diffusers computes the same numbers."""
UNSUPPORTED = {
    "enable_freeu": "it is not for Kandinsky; leave the line out",
    "enable_group_offload": "use enable_sequential_cpu_offload()",
    "load_lora_weights": "paint with kandinsky22.Kandinsky and its loras=[...]",
    "push_to_hub": "use save_pretrained, and upload the folder with `hf upload`",
}
"""Methods of diffusers' pipelines that do not exist here, and what to do instead."""


class DiffusersAttributes:
    """Base of the pipelines: what programs written for diffusers read of a pipeline, beside its parts."""

    ATTRIBUTES: ClassVar[frozenset[str]] = frozenset(
        {
            "_parts",
            "_views",
            "placement",
            "_progress_options",
            "_guidance_scale",
            "_num_timesteps",
            "_networks",
            "_stage",
            "_placed",
            "prior_pipe",
            "decoder_pipe",
        }
    )
    """What can be set beside the parts."""
    CALLBACK_TENSORS: ClassVar[tuple[str, ...]]
    _optional_components: ClassVar[list[str]] = []
    _exclude_from_cpu_offload: ClassVar[list[str]] = []
    _load_connected_pipes: ClassVar[bool] = False
    hf_device_map: None = None

    _guidance_scale: float
    _num_timesteps: int
    _progress_options: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name in SWITCHES:
            return without_effect(name)
        message = f"{type(self).__name__} has no {name}"
        raise AttributeError(f"{message}: {UNSUPPORTED[name]}" if name in UNSUPPORTED else message)

    @property
    def parts(self) -> dict[str, Any]:
        """The parts by name, each network as a `Part`, which this does not load."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device it computes on."""
        raise NotImplementedError

    @property
    def config(self) -> Mapping[str, Any]:
        """The `model_index.json` that `save_pretrained` would write."""
        return components.index_of(type(self).__name__, self.parts)

    @property
    def _execution_device(self) -> torch.device:
        return self.device

    @property
    def _callback_tensor_inputs(self) -> list[str]:
        return list(self.CALLBACK_TENSORS)

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the latest call; a callback changes it by setting `_guidance_scale`."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the latest call was guided."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """The number of steps of the latest call."""
        return self._num_timesteps

    def set_progress_bar_config(self, **config: Any) -> None:
        """disable, desc and leave, with tqdm's meaning; other options are accepted and have no effect."""
        self._progress_options = config

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> ProgressBar:
        """A progress bar over an iterable, or of `total` steps for a `with` block that calls its `update`."""
        return ProgressBar(total, self._progress_options, iterable)

    @staticmethod
    def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
        """PIL pictures of arrays [H, W, 3] or [B, H, W, 3] in [0, 1]."""
        levels = (np.asarray(images, np.float32) * 255).round().clip(0, 255).astype(np.uint8)
        return [Image.fromarray(one.squeeze()) for one in (levels[None] if levels.ndim == 3 else levels)]

    def maybe_free_model_hooks(self) -> None:
        """Nothing is left to free after a call."""

    def remove_all_hooks(self) -> None:
        """There are no hooks."""

    def reset_device_map(self) -> None:
        """There is no device map."""
