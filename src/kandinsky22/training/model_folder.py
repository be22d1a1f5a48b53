"""The folder of a model that is being trained, in the published layout, and the base model that it starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.network import Stored, save
from kandinsky22.checkpoints.part import KINDS, Kind
from kandinsky22.files import atomic_folder

STORED_DTYPE = torch.float16


@dataclass(frozen=True)
class Component:
    """A network of a model: the part of the model and the folder in it, the training that writes it, and its class."""

    part: str
    folder: str
    trained_by: str
    kind: Kind


MOVQ = Component(catalog.DECODER, "movq", "movq", KINDS["movq"])
TEXT_ENCODER = Component(catalog.PRIOR, "text_encoder", "clip", KINDS["text_encoder"])
IMAGE_ENCODER = Component(catalog.PRIOR, "image_encoder", "clip", KINDS["image_encoder"])
PRIOR = Component(catalog.PRIOR, "prior", "prior", KINDS["prior"])
DECODER = Component(catalog.DECODER, "unet", "decoder", KINDS["unet"])
INPAINT = Component(catalog.INPAINT, "unet", "inpaint", KINDS["unet"])
CONTROLNET = Component(catalog.DEPTH, "unet", "controlnet", KINDS["unet"])


@dataclass(frozen=True)
class ModelFolder:
    """A model in `path`; what it lacks comes from the parts of the `base` model."""

    path: Path
    base: Mapping[str, Path]

    @property
    def parts(self) -> dict[str, Path]:
        """The folder of each available part: this model's, else the base model's."""
        trained = {part: self.path / part for part in catalog.PARTS if (self.path / part).is_dir()}
        return {**self.base, **trained}

    def part(self, name: str) -> Path:
        """The folder of a part: where it is, or where it will be written."""
        return self.parts.get(name, self.path / name)

    def target(self, component: Component) -> Path:
        """The folder that a component is written to."""
        return self.path / component.part / component.folder

    def locate(self, component: Component) -> Path:
        """The folder of a component, here or in the base model. Raises `CheckpointError` if it is not trained yet."""
        path = self.part(component.part) / component.folder
        if not path.is_dir():
            raise CheckpointError(f"{path} is not there yet; train {component.trained_by} first")
        return path

    def stored(self, component: Component) -> Stored[Any, Any]:
        """The weights of a component. Raises `CheckpointError` if it is not trained yet."""
        return Stored(self.locate(component), component.kind.network, component.kind.config)

    def stored_in_base(self, component: Component) -> Stored[Any, Any] | None:
        """The weights of a component in the base model, if it has them."""
        path = self.base[component.part] / component.folder if component.part in self.base else None
        if path is None or not path.is_dir():
            return None
        return Stored(path, component.kind.network, component.kind.config)

    def save(self, component: Component, network: nn.Module) -> None:
        """Replace the folder of a component: the base model's may have files of other names."""
        with atomic_folder(self.target(component)) as partial:
            save(partial, network, dtype=STORED_DTYPE, name=component.kind.file)
