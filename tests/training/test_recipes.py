"""Recipes: the published schedule has the model card's values, and a model is fine-tuned with its own networks."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from kandinsky22 import Kandinsky, text2img
from kandinsky22.checkpoints import catalog, full_size, locate
from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.clip import CLIPText
from kandinsky22.training.loop import Recipe
from kandinsky22.training.model_recipe import ModelRecipe
from kandinsky22.training.model_trainer import ModelTrainer
from kandinsky22.training.precompute import DatasetConfig
from kandinsky22.training.recipes import BOX, PUBLISHED, STAGES, of_model
from kandinsky22.training.registry import ITERATIVE
from kandinsky22.training.sources import Source


def test_stages_have_the_values_of_the_model_card() -> None:
    """The data sets, their order, and 2,000 iterations of the decoder after the change of the image encoder."""
    aesthetics, high = STAGES["prior-aesthetics"], STAGES["prior-high-resolution"]
    assert (aesthetics.filter.aesthetic, high.begins) == (6.5, "prior-aesthetics")
    assert "HighRes" in STAGES["decoder-high-resolution"].data and "COYO" in STAGES["decoder-curated"].data
    last = STAGES["clip-switch-decoder"]
    assert (last.network, last.steps, last.recipe.steps["decoder"]) == ("decoder", 2000, 2000)
    for stage in STAGES.values():
        assert set(stage.card) <= {field.name for field in fields(stage)} and stage.card
        assert stage.recipe.runs[stage.network].learning_rate == stage.learning_rate
        assert stage.begins in STAGES or stage.begins.startswith(("nothing", "the decoder"))


def test_the_published_recipe_has_the_published_networks() -> None:
    with torch.device("meta"):
        text = CLIPText(PUBLISHED.text_config(PUBLISHED.vocabulary))
    assert sum(p.numel() for p in text.parameters()) == full_size.elements(CLIPText, full_size.TEXT_ENCODER)
    assert (PUBLISHED.unet, PUBLISHED.prior, PUBLISHED.movq) == (full_size.UNET, full_size.PRIOR, full_size.MOVQ)
    assert NoiseSchedule.from_config(PUBLISHED.decoder_scheduler).prediction_type == "epsilon"
    assert NoiseSchedule.from_config(PUBLISHED.prior_scheduler).prediction_type == "sample"


@pytest.mark.parametrize("recipe", [BOX, PUBLISHED])
def test_every_network_has_hyperparameters_and_a_seed_of_its_own(recipe: ModelRecipe) -> None:
    assert ITERATIVE.keys() == recipe.runs.keys() == recipe.steps.keys()
    assert len({run.seed for run in BOX.runs.values()}) == len(BOX.runs), "no two networks see the same random numbers"


def test_the_fine_tuning_recipe_has_the_models_own_networks() -> None:
    """The shipped weights are those of an earlier recipe, with a smaller CLIP and prior. When weights of this recipe
    are committed, compare `prior`, `vision`, `text_length` and `image_processor` with BOX as well."""
    recipe = of_model(locate.part_folders(catalog.BOX))
    assert (recipe.unet, recipe.movq, recipe.side) == (BOX.unet, BOX.movq, BOX.side)
    assert recipe.prior == replace(BOX.prior, num_embeddings=recipe.text_length)
    assert recipe.vision.projection_dim == BOX.vision.projection_dim == recipe.prior.embedding_dim
    assert recipe.decoder_scheduler["prediction_type"] == "v_prediction"
    assert max(run.learning_rate for run in recipe.runs.values()) < min(run.learning_rate for run in BOX.runs.values())


def test_fine_tuning_the_prior_changes_no_other_network(tiny_model: Path, tmp_path: Path) -> None:
    """One step on a few pictures; all other networks are those of the base model."""
    parts = locate.part_folders(str(tiny_model))
    recipe = of_model(parts)
    run = Recipe(batch=2, learning_rate=1e-3, bfloat16=False)
    dataset = DatasetConfig((Source(pictures(tmp_path)),))
    trainer = ModelTrainer(replace(recipe, runs={**recipe.runs, "prior": run}), tmp_path, parts, dataset)
    (line,) = trainer.train("prior", steps=1)
    assert line.loss > 0 and line.validation is not None and line.validation.loss > 0
    assert all(not p.requires_grad and p.grad is None for p in trainer.frozen.text_encoder.parameters())
    changed = {
        str(path.relative_to(tiny_model))
        for path in tiny_model.rglob("*")
        if path.is_file() and (trainer.model.path / path.relative_to(tiny_model)).read_bytes() != path.read_bytes()
    }
    assert "prior/prior/diffusion_pytorch_model.safetensors" in changed
    assert all(name.endswith((".json", "README.md")) or name.startswith("prior/prior/") for name in changed), changed
    (result,) = Kandinsky.load(trainer.model.path)(text2img("red", seed=1))
    assert result.image.size == (64, 64)


def pictures(folder: Path) -> Path:
    """A folder of four plain pictures with captions."""
    path = folder / "pictures"
    path.mkdir()
    for color in ("red", "blue", "green", "black"):
        Image.new("RGB", (80, 70), color).save(path / f"{color}.png")
        (path / f"{color}.txt").write_text(f"a {color} circle\n")
    return path
