"""What the set-up of each network's training needs: the recipe, the model so far, the data and the processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from kandinsky22.models.clip import CLIPImageProcessor
from kandinsky22.training import init_weights, lora
from kandinsky22.training.data import Progress, no_progress
from kandinsky22.training.frozen_networks import FrozenNetworks
from kandinsky22.training.loop import Objective, Training
from kandinsky22.training.lora import LoRAConfig
from kandinsky22.training.model_folder import IMAGE_ENCODER, Component, ModelFolder
from kandinsky22.training.model_recipe import ModelRecipe
from kandinsky22.training.precompute import DatasetConfig, TrainingData
from kandinsky22.training.processes import ALONE, CPU, Processes
from kandinsky22.training.sample_grid import SampleGrid
from kandinsky22.training.settings import Settings


@dataclass(frozen=True)
class TrainingContext:
    """The training of a model in `folder`; the model itself is written to `folder/model`.

    `base` are the parts of the model to start from: networks are initialised with its weights where they fit, and it
    provides the networks that are not trained here. `from_scratch`: initialise the network randomly all the same;
    `new_tokenizer`: learn a tokenizer of at most so many tokens although the base model has one, 0 for not.
    `dataset` are the user's pictures, to learn from instead of the picture world. `settings` are the options that
    decide what is learned; checkpoints store them. `lora`: train low-rank adapters of the network instead of it.
    """

    recipe: ModelRecipe
    folder: Path
    base: Mapping[str, Path] = field(default_factory=dict)
    dataset: DatasetConfig | None = None
    processes: Processes = ALONE
    progress: Progress = no_progress
    from_scratch: bool = False
    settings: Settings = field(default_factory=dict)
    new_tokenizer: int = 0
    lora: LoRAConfig | None = None
    _data: dict[tuple[bool, bool, bool], TrainingData] = field(default_factory=dict, init=False)

    @cached_property
    def model(self) -> ModelFolder:
        """The model so far."""
        return ModelFolder(self.folder / "model", self.base)

    @cached_property
    def frozen(self) -> FrozenNetworks:
        """The trained networks of the model, to learn from."""
        return FrozenNetworks(self.model, self.processor, self.processes.device)

    @cached_property
    def processor(self) -> CLIPImageProcessor:
        """CLIP's preprocessing of pictures."""
        return self.recipe.image_processor

    def training_data(self, network: str, *, captioned: bool, hinted: bool = False) -> TrainingData:
        """The pictures that a network learns from; networks with the same requirements share them."""
        run = self.recipe.runs.get(network)
        key = captioned, hinted, run is None or run.bfloat16
        common = self.recipe, self.folder, self.processor, self.dataset
        return self._data.setdefault(key, TrainingData(*common, *key, self.processes, self.progress))

    def training(
        self,
        name: str,
        network: nn.Module,
        objective: Objective,
        data: TrainingData,
        inputs: Mapping[str, str],
    ) -> Training:
        """The training run of a network. `inputs` are the fingerprints of the frozen networks that it learns from."""
        learnt_from = {**inputs, "pictures": data.name}
        recipe, steps = self.recipe.runs[name], self.recipe.steps[name]
        if self.lora is not None:
            lora.adapt(network, self.lora, recipe.seed)
        return Training(network, objective, recipe, steps, learnt_from, self.processes, self.settings)

    def initialise_from_base(self, component: Component, network: nn.Module) -> bool:
        """Initialise a network with the base model's weights where they fit; returns whether the base model has any."""
        stored = None if self.from_scratch else self.model.stored_in_base(component)
        if stored is not None:
            weights = stored.load(torch.float32, CPU).state_dict()
            network.load_state_dict(init_weights.initial_state(network.state_dict(), weights))
        return stored is not None

    @property
    def has_image_encoder_of_base(self) -> bool:
        """Whether image embeddings are the same as those of the base model."""
        base = self.model.stored_in_base(IMAGE_ENCODER)
        return base is not None and base.fingerprint == self.model.stored(IMAGE_ENCODER).fingerprint


class Prepared(NamedTuple):
    """A network's run, ready to start or to resume, and what draws its sample grid and validates it."""

    training: Training
    sample_grid: SampleGrid | None = None
