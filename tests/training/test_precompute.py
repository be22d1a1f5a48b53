"""What is computed once goes by all that it follows from: numbers, how pictures are prepared, and the dtype of products."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kandinsky22.imaging.depth import load
from kandinsky22.models.clip import CLIPVision
from kandinsky22.training.model_trainer import Workshop
from kandinsky22.training.precompute import Material, Own
from kandinsky22.training.recipes import BOX, ModelRecipe
from kandinsky22.training.sources import Source
from tests.imaging.test_depth import dpt, save
from tests.training.test_photos import write_folder

SMALL = replace(BOX, side=64)


def material(folder: Path, **said: Any) -> Material:
    pictures = folder / "own"
    own = Own(
        (Source(pictures if pictures.is_dir() else write_folder(pictures, 3)),),
        depth_model=said.pop("depth_model", None),
    )
    return Material(SMALL, folder, SMALL.image_processor, own, **said)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_products_are_of_the_dtype_of_the_run(bfloat16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device has instructions for it; and what was computed otherwise is not taken for it."""
    monkeypatch.setattr("kandinsky22.training.precompute.computes_bfloat16", lambda device: True)
    seen = []

    def encode(pictures: Tensor) -> Tensor:
        product = pictures.flatten(1)[:, :4] @ torch.ones(4, 4)
        seen.append(product.dtype)
        return product

    found = material(tmp_path, bfloat16=bfloat16)
    found.latents(found.sets[0], "a", encode)
    found.embeds(found.sets[0], "a", encode)
    assert set(seen) == {torch.bfloat16 if bfloat16 else torch.float32}
    other = material(tmp_path, bfloat16=not bfloat16)
    other.latents(other.sets[0], "a", encode)
    assert len({*seen}) == 2 and len([*tmp_path.glob("latents-*")]) == 2
    count = len(seen)
    found.latents(found.sets[0], "a", encode)
    assert len(seen) == count
    monkeypatch.setattr("kandinsky22.training.precompute.computes_bfloat16", lambda device: False)
    without = material(tmp_path, bfloat16=True)  # as in float32
    without.latents(without.sets[0], "a", encode)
    assert len(seen) == count


def recipe(**said: Any) -> ModelRecipe:
    return replace(SMALL, runs={name: replace(run, **said) for name, run in SMALL.runs.items()})


def test_a_runs_dtype_reaches_what_is_computed_before_it(tmp_path: Path) -> None:
    for bfloat16 in (True, False):
        workshop = Workshop(recipe(bfloat16=bfloat16), tmp_path)
        assert {workshop.material(network).bfloat16 for network in ("prior", "decoder", "controlnet")} == {bfloat16}
        assert workshop.material("prior") is workshop.material("clip") is not workshop.material("decoder")
        assert workshop.material("linear-prior").bfloat16


def test_embeddings_go_by_the_tower_and_by_what_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tower:
        fingerprint = "a"

        def load(self, *_: Any) -> CLIPVision:
            raise AssertionError("it is not read to be named")

    monkeypatch.setattr(Workshop, "stored", lambda self, name: Tower())
    plain = Workshop(SMALL, tmp_path)
    other = Workshop(replace(SMALL, image_processor=replace(SMALL.image_processor, resample=2)), tmp_path)
    assert plain.embedding[0] == Workshop(SMALL, tmp_path).embedding[0] != other.embedding[0]
    assert plain._seen_by["image_encoder"] == other._seen_by["image_encoder"]
    assert plain._seen_by["image_processor"] != other._seen_by["image_processor"]
    before = plain.embedding[0]
    monkeypatch.setattr(Tower, "fingerprint", "b")
    assert plain.embedding[0] != before


def test_depth_goes_by_what_estimates_it_and_not_by_its_name(tmp_path: Path) -> None:
    """The same folder with other numbers, or another preparation, estimates anew; the same elsewhere does not."""
    model = save(tmp_path / "depth", dpt())
    found = material(tmp_path / "run", depth_model=str(model))
    found.depths(found.sets[0])

    def folders() -> int:
        found = material(tmp_path / "run", depth_model=str(model))
        depths = found.depths(found.sets[0])
        assert depths[torch.arange(3)].dtype == torch.uint8
        return len([*(tmp_path / "run").glob("depths-*")])

    before = load(model).fingerprint
    assert folders() == 1
    model = model.rename(tmp_path / "moved")
    assert folders() == 1 and load(model).fingerprint == before
    settings = model / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace('"resample": 3', '"resample": 2'))
    assert folders() == 2
    network = load(model).network
    next(network.parameters()).data += 1
    network.save_pretrained(model)
    assert folders() == 3
