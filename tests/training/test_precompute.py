"""Precomputed values are stored by all that they depend on: the network, the preprocessing and the dtype."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints import network as network_files
from kandinsky22.imaging.depth import load
from kandinsky22.models.clip import CLIPVision
from kandinsky22.training import shards
from kandinsky22.training.controlnet import hint_inputs
from kandinsky22.training.decoder import Bucket
from kandinsky22.training.model_trainer import ModelTrainer
from kandinsky22.training.precompute import DatasetConfig, TrainingData, fingerprint_of
from kandinsky22.training.recipes import BOX, ModelRecipe
from kandinsky22.training.sources import Source
from tests.imaging.test_depth import dpt, save
from tests.training.test_model_trainer import SHORT
from tests.training.test_photos import write_folder

SMALL = replace(BOX, side=64)


def training_data(folder: Path, depth_model: str | None = None, **options: Any) -> TrainingData:
    """Three pictures in a folder."""
    pictures = folder / "own"
    source = Source(pictures if pictures.is_dir() else write_folder(pictures, 3))
    return TrainingData(
        SMALL, folder, SMALL.image_processor, DatasetConfig((source,), depth_model=depth_model), **options
    )


@pytest.mark.parametrize("bfloat16", [True, False])
def test_values_are_computed_in_the_dtype_of_the_run(
    bfloat16: bool, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the device computes in bfloat16; values computed in another dtype are stored separately."""
    monkeypatch.setattr("kandinsky22.training.precompute.computes_bfloat16", lambda device: True)
    dtypes = []

    def encode(pictures: Tensor) -> Tensor:
        product = pictures.flatten(1)[:, :4] @ torch.ones(4, 4)
        dtypes.append(product.dtype)
        return product

    data = training_data(tmp_path, bfloat16=bfloat16)
    data.latents(data.sets[0], "a", encode)
    data.embeds(data.sets[0], "a", encode)
    assert set(dtypes) == {torch.bfloat16 if bfloat16 else torch.float32}
    other = training_data(tmp_path, bfloat16=not bfloat16)
    other.latents(other.sets[0], "a", encode)
    assert len({*dtypes}) == 2 and len([*own_cache.glob("training/latents-*")]) == 2
    count = len(dtypes)
    data.latents(data.sets[0], "a", encode)
    assert len(dtypes) == count
    monkeypatch.setattr("kandinsky22.training.precompute.computes_bfloat16", lambda device: False)
    without = training_data(tmp_path, bfloat16=True)  # computes in float32
    without.latents(without.sets[0], "a", encode)
    assert len(dtypes) == count


def recipe(**options: Any) -> ModelRecipe:
    """The small recipe with other values in the runs of all networks."""
    return replace(SMALL, runs={name: replace(run, **options) for name, run in SMALL.runs.items()})


def test_dtype_of_a_run_is_used_for_its_training_data(tmp_path: Path) -> None:
    for bfloat16 in (True, False):
        trainer = ModelTrainer(recipe(bfloat16=bfloat16), tmp_path)
        assert {trainer.data(network).bfloat16 for network in ("prior", "decoder", "controlnet")} == {bfloat16}
        assert trainer.data("prior") is trainer.data("clip") is not trainer.data("decoder")
        assert trainer.data("linear-prior").bfloat16


def test_embeddings_are_identified_by_image_encoder_and_preprocessing(tmp_path: Path) -> None:
    preprocessed = replace(SHORT, image_processor=replace(SHORT.image_processor, resample=2))
    plain, other = ModelTrainer(SHORT, tmp_path).frozen, ModelTrainer(preprocessed, tmp_path).frozen
    folder = tmp_path / "model" / catalog.PRIOR / "image_encoder"
    encoder = CLIPVision(SHORT.vision)
    network_files.save(folder, encoder, dtype=torch.float16)
    before, _ = plain.image_embedder
    assert ModelTrainer(SHORT, tmp_path).frozen.image_embedder[0] == before != other.image_embedder[0]
    fingerprints, other_fingerprints = plain.image_encoder_fingerprints, other.image_encoder_fingerprints
    assert fingerprints["image_encoder"] == other_fingerprints["image_encoder"]
    assert fingerprints["image_processor"] != other_fingerprints["image_processor"]
    next(encoder.parameters()).data += 1
    network_files.save(folder, encoder, dtype=torch.float16)
    assert plain.image_embedder[0] != before


def test_depth_is_identified_by_its_estimator_and_not_by_its_path(tmp_path: Path, own_cache: Path) -> None:
    """Other weights or preprocessing in the same folder estimate again; the same network in another does not."""
    model = save(tmp_path / "depth", dpt())

    def estimated_folders() -> int:
        data = training_data(tmp_path / "run", depth_model=str(model))
        depths = data.depths(data.sets[0])
        assert depths[torch.arange(3)].dtype == torch.uint8
        return len([*own_cache.glob("training/depths-*")])

    before = load(model).fingerprint
    assert estimated_folders() == 1
    model = model.rename(tmp_path / "moved")
    assert estimated_folders() == 1 and load(model).fingerprint == before
    settings = model / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace('"resample": 3', '"resample": 2'))
    assert estimated_folders() == 2
    network = load(model).network
    next(network.parameters()).data += 1
    network.save_pretrained(model)
    assert estimated_folders() == 3


def test_values_that_an_earlier_version_computed_in_the_run_are_used(tmp_path: Path, own_cache: Path) -> None:
    data = training_data(tmp_path, bfloat16=False)
    (pictures,) = data.sets
    fingerprint = fingerprint_of("a", "float32")
    folder = tmp_path / f"latents-{fingerprint}-{pictures.pixels_name}"
    shards.load_or_compute(folder, fingerprint, len(pictures), lambda rows: torch.tensor(rows)[:, None].float())
    values = data.latents(pictures, "a", lambda pixels: torch.zeros(len(pixels), 1))
    assert values[torch.arange(3)].flatten().tolist() == [0, 1, 2]
    assert not [*own_cache.iterdir()]


def test_a_picture_is_encoded_once_for_all_runs(tmp_path: Path) -> None:
    encoded = []

    def encode(pixels: Tensor) -> Tensor:
        encoded.append(len(pixels))
        return pixels.mean(dim=(2, 3))

    first, second = training_data(tmp_path / "a"), training_data(tmp_path / "b")
    write_folder(tmp_path / "b" / "own", 5)  # two more, under the same names
    before = first.latents(first.sets[0], "a", encode)
    after = second.latents(second.sets[0], "a", encode)
    assert encoded == [len(first.sets[0]), 2] and torch.equal(before[torch.arange(3)], after[torch.arange(3)])


def test_control_pictures_of_ones_own_are_learnt_from_as_they_are(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", 3)
    for number in range(2):
        Image.new("RGB", (64, 64), (255, 100 * number, 0)).save(folder / f"{number:03}.hint.png")
    data = training_data(tmp_path, hinted=True)
    (pictures,) = data.sets
    latents, embeds = torch.zeros(2, 4, 8, 8), torch.zeros(2, 8)
    bucket = Bucket(latents, embeds, data.depths(pictures))
    (hint,) = hint_inputs(bucket, torch.tensor([1]), latents[:1], torch.Generator())["hint"]
    assert bucket.rows == 2 and hint.shape == (3, 64, 64)
    assert torch.allclose(hint[:, 0, 0], torch.tensor([1, 100 / 255, 0]))
    assert "1 without a control picture, NAME.hint.png (--depth-model estimates depth instead)" in data.report
