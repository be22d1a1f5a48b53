"""Results of pipelines, read as code written for diffusers reads them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch


class Output(Mapping[str, Any]):
    """A result whose values are read by attribute, name or index, as a tuple, or unpacked with `**`."""

    def __getitem__(self, key: Any) -> Any:
        return self.to_tuple()[key] if isinstance(key, int | slice) else vars(self)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    def to_tuple(self) -> tuple[Any, ...]:
        """The values without their names."""
        return tuple(vars(self).values())


@dataclass(frozen=True, eq=False)
class ImagePipelineOutput(Output):
    """`images`: a list of PIL pictures, or an array or tensor of pictures or latents [B, ...]."""

    images: Any


@dataclass(frozen=True, eq=False)
class KandinskyPriorPipelineOutput(Output):
    """CLIP image embeddings [B, D], positive and negative, to pass to a decoder."""

    image_embeds: Any
    negative_image_embeds: Any


class PartOutput(Output):
    """What a part returns to a program that calls it, under the names of diffusers and transformers."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"this result has {', '.join(self)}, not {name}")

    def to(self, *args: Any, **kwargs: Any) -> "PartOutput":
        """With all tensors on another device; those of real numbers also in another dtype."""
        moved = {name: value.to(*args, **kwargs) for name, value in self.items() if value.is_floating_point()}
        devices = [arg for arg in (*args, kwargs.get("device")) if arg is not None and not isinstance(arg, torch.dtype)]
        rest = {name: value.to(*devices) if devices else value for name, value in self.items() if name not in moved}
        return PartOutput(**{name: (moved | rest)[name] for name in self})
