"""The folder of a model that is being trained, in the published layout, and the base model that it starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.network import Stored, save
from kandinsky22.checkpoints.part import KINDS
from kandinsky22.files import atomic_folder

STORED_DTYPE = torch.float16


class Component(NamedTuple):
    """Where a network is in a model, and the training that writes it."""

    part: str
    folder: str  # also its name in `KINDS`
    trained_by: str


COMPONENTS: Mapping[str, Component] = {
    "movq": Component(catalog.DECODER, "movq", "movq"),
    "text_encoder": Component(catalog.PRIOR, "text_encoder", "clip"),
    "image_encoder": Component(catalog.PRIOR, "image_encoder", "clip"),
    "prior": Component(catalog.PRIOR, "prior", "prior"),
    "decoder": Component(catalog.DECODER, "unet", "decoder"),
    "inpaint": Component(catalog.INPAINT, "unet", "inpaint"),
    "controlnet": Component(catalog.DEPTH, "unet", "controlnet"),
}


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

    def target(self, name: str) -> Path:
        """The folder that a component is written to."""
        component = COMPONENTS[name]
        return self.path / component.part / component.folder

    def locate(self, name: str) -> Path:
        """The folder of a component, here or in the base model. Raises `CheckpointError` if it is not trained yet."""
        part, folder, trained_by = COMPONENTS[name]
        path = self.part(part) / folder
        if not path.is_dir():
            raise CheckpointError(f"{path} is not there yet; train {trained_by} first")
        return path

    def stored(self, name: str) -> Stored[Any, Any]:
        """The weights of a component. Raises `CheckpointError` if it is not trained yet."""
        return _stored(self.locate(name))

    def stored_in_base(self, name: str) -> Stored[Any, Any] | None:
        """The weights of a component in the base model, if it has them."""
        part, folder, _ = COMPONENTS[name]
        path = self.base[part] / folder if part in self.base else None
        return _stored(path) if path is not None and path.is_dir() else None

    def save(self, name: str, network: nn.Module) -> None:
        """Replace the folder of a component: the base model's may have files of other names."""
        target = self.target(name)
        with atomic_folder(target) as partial:
            save(partial, network, dtype=STORED_DTYPE, name=KINDS[target.name].file)


def _stored(path: Path) -> Stored[Any, Any]:
    kind = KINDS[path.name]
    return Stored(path, kind.network, kind.config)
