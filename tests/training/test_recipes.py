"""Recipes say what they should: the card's values are the card's, and a model's own networks are what it is fine-tuned with."""

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
from kandinsky22.training.model_trainer import Workshop
from kandinsky22.training.precompute import Own
from kandinsky22.training.recipes import BOX, NETWORKS, PUBLISHED, STAGES, ModelRecipe, of_model
from kandinsky22.training.sources import Source


def test_the_cards_schedule() -> None:
    """From the model card: which sets, in which order, and 2,000 iterations of the decoder after the switch of CLIP."""
    aesthetics, high = STAGES["prior-aesthetics"], STAGES["prior-high-resolution"]
    assert (aesthetics.filter.aesthetic, high.begins) == (6.5, "prior-aesthetics")
    assert "HighRes" in STAGES["decoder-high-resolution"].data and "COYO" in STAGES["decoder-curated"].data
    switch = STAGES["clip-switch-decoder"]
    assert (switch.network, switch.steps, switch.recipe.steps["decoder"]) == ("decoder", 2000, 2000)
    for stage in STAGES.values():
        assert set(stage.card) <= {field.name for field in fields(stage)} and stage.card
        assert stage.recipe.runs[stage.network].learning_rate == stage.learning_rate
        assert stage.begins in STAGES or stage.begins.startswith(("nothing", "the decoder"))


def test_the_published_recipe_makes_the_published_networks() -> None:
    with torch.device("meta"):
        text = CLIPText(PUBLISHED.text_config(PUBLISHED.vocabulary))
    assert sum(p.numel() for p in text.parameters()) == full_size.elements(CLIPText, full_size.TEXT_ENCODER)
    assert (PUBLISHED.unet, PUBLISHED.prior, PUBLISHED.movq) == (full_size.UNET, full_size.PRIOR, full_size.MOVQ)
    assert NoiseSchedule.from_config(PUBLISHED.decoder_scheduler).prediction_type == "epsilon"
    assert NoiseSchedule.from_config(PUBLISHED.prior_scheduler).prediction_type == "sample"


@pytest.mark.parametrize("recipe", [BOX, PUBLISHED])
def test_every_network_has_a_run(recipe: ModelRecipe) -> None:
    learnt = set(NETWORKS) - {"linear-prior"}
    assert learnt <= recipe.runs.keys() and learnt <= recipe.steps.keys()
    assert len({run.seed for run in BOX.runs.values()}) == len(BOX.runs), "no two networks see the same random numbers"


def test_a_model_is_fine_tuned_with_its_own_networks() -> None:
    recipe = of_model(locate.part_folders(catalog.BOX))
    assert (recipe.unet, recipe.prior, recipe.movq, recipe.vision) == (BOX.unet, BOX.prior, BOX.movq, BOX.vision)
    assert (recipe.side, recipe.text_length, recipe.image_processor) == (BOX.side, BOX.text_length, BOX.image_processor)
    assert recipe.decoder_scheduler["prediction_type"] == "v_prediction"
    assert max(run.learning_rate for run in recipe.runs.values()) < min(run.learning_rate for run in BOX.runs.values())


def test_a_model_starts_whole_and_frozen_networks_hold_no_gradients(tiny_model: Path, tmp_path: Path) -> None:
    """A prior is fine-tuned a step on a few pictures; all else stays the model's that it started with."""
    parts = locate.part_folders(str(tiny_model))
    recipe = of_model(parts)
    few = Recipe(batch=2, learning_rate=1e-3, bfloat16=False)
    workshop = Workshop(
        replace(recipe, runs={**recipe.runs, "prior": few}), tmp_path, parts, Own((Source(pictures(tmp_path)),))
    )
    (line,) = workshop.train("prior", steps=1)
    assert line["loss"] > 0 and line["validation"] > 0
    assert all(not p.requires_grad and p.grad is None for p in workshop.text_encoder.parameters())
    changed = {
        str(path.relative_to(tiny_model))
        for path in tiny_model.rglob("*")
        if path.is_file() and (workshop.model / path.relative_to(tiny_model)).read_bytes() != path.read_bytes()
    }
    assert "prior/prior/diffusion_pytorch_model.safetensors" in changed
    assert all(name.endswith(".json") or name.startswith("prior/prior/") for name in changed), changed
    (painted,) = Kandinsky.load(workshop.model)(text2img("two red circles", seed=1))
    assert painted.image.size == (64, 64)


def pictures(folder: Path) -> Path:
    """Four plain pictures with captions."""
    made = folder / "pictures"
    made.mkdir()
    for color in ("red", "blue", "green", "black"):
        Image.new("RGB", (80, 70), color).save(made / f"{color}.png")
        (made / f"{color}.txt").write_text(f"a {color} circle\n")
    return made
