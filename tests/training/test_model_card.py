"""What a trained model says of itself: its words and card, which networks no longer fit, and the size it paints at."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kandinsky22 import Kandinsky, text2img
from kandinsky22.checkpoints import catalog, locate
from kandinsky22.checkpoints.metadata import read_metadata, stale_notice
from kandinsky22.imaging.canvas import Canvas
from kandinsky22.training import cli
from kandinsky22.training.model_trainer import ModelTrainer
from kandinsky22.training.precompute import DatasetConfig
from kandinsky22.training.recipes import of_model
from kandinsky22.training.sources import Source
from tests.training.test_captions import write_animals

CAPTIONS = ["an otter", "a badger", "a heron", "a lynx"]


def trainer_of(tiny_model: Path, tmp_path: Path, *, captions: list[str] = CAPTIONS) -> ModelTrainer:
    """Trains the tiny model, which has a vocabulary, on pictures of animals with a licence."""
    base = locate.part_folders(str(tiny_model))
    recipe = of_model(base)
    runs = {name: replace(run, batch=2) for name, run in recipe.runs.items()}
    folder = write_animals(tmp_path / "animals", captions)
    (folder / "0.json").write_text(json.dumps({"licence": "cc0"}))
    dataset = DatasetConfig((Source(folder),))
    settings = {"start_from": str(tiny_model)}
    return ModelTrainer(replace(recipe, runs=runs), tmp_path / "run", base, dataset, settings=settings)


@pytest.fixture
def worded_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model that claims words, examples and scores."""
    folder = shutil.copytree(tiny_model, tmp_path / "worded")
    path = folder / catalog.DECODER / "kandinsky22.json"
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, "words": {"shapes": ["circle"]}, "examples": ["a circle"]}))
    (folder / catalog.DECODER / "README.md").write_text("47 % of the captions are right")
    return folder


def test_a_trained_model_has_the_words_and_examples_of_its_captions(worded_model: Path, tmp_path: Path) -> None:
    trainer = trainer_of(worded_model, tmp_path)
    list(trainer.train("prior", steps=1))
    metadata = read_metadata(trainer.model.path / catalog.DECODER)
    assert set(metadata.words["words"]) == {"an", "a", "otter", "badger", "heron", "lynx"}
    assert set(metadata.examples) <= set(CAPTIONS) and metadata.examples


def test_a_model_trained_without_captions_drops_its_words(worded_model: Path, tmp_path: Path) -> None:
    trainer = trainer_of(worded_model, tmp_path, captions=[""] * 4)
    list(trainer.train("movq", steps=1))
    metadata = read_metadata(trainer.model.path / catalog.DECODER)
    assert not metadata.words and not metadata.examples


def test_the_card_names_base_data_steps_and_licences_and_no_scores(worded_model: Path, tmp_path: Path) -> None:
    trainer = trainer_of(worded_model, tmp_path)
    list(trainer.train("prior", steps=1))
    card = (trainer.model.path / catalog.DECODER / "README.md").read_text()
    assert f"| prior | {worded_model.name} | animals | 4 | 1 | cc0 (1) |" in card
    assert "47 %" not in card and str(tmp_path) not in card


def test_a_new_clip_makes_the_other_networks_stale_until_they_are_trained(worded_model: Path, tmp_path: Path) -> None:
    trainer = trainer_of(worded_model, tmp_path)
    list(trainer.train("clip", steps=1))
    folder = trainer.model.path
    assert read_metadata(folder / catalog.DECODER).stale["prior"] == ("clip",)
    kandinsky = Kandinsky.load(folder)
    request = kandinsky.resolve(text2img("an otter", seed=1))
    canvas = Canvas.of(request, (64, 64))
    (notice,) = (one for one in kandinsky.notices(request, canvas) if "train them again" in one)
    assert "of this model, prior, decoder" in notice and "learnt from another clip and no longer fit" in notice
    assert f"kandinsky22 train prior --start-from {folder} --data PICTURES" in notice
    list(trainer.train("prior", steps=1))
    stale = read_metadata(folder / catalog.DECODER).stale
    assert "prior" not in stale and stale["decoder"] == ("clip",)


def test_a_model_whose_networks_fit_gives_no_notice() -> None:
    assert stale_notice({}, Path("runs/mine/model")) is None


def test_a_run_given_as_a_model_is_answered_with_the_model_in_it(worded_model: Path, tmp_path: Path) -> None:
    trainer = trainer_of(worded_model, tmp_path)
    list(trainer.train("prior", steps=1))
    with pytest.raises(ValueError, match=r"holds the run of a training, not a model; did you mean .*run.model\?"):
        Kandinsky.load(tmp_path / "run")


def test_a_model_trained_at_another_side_paints_at_it(tiny_model: Path, tmp_path: Path) -> None:
    data = write_animals(tmp_path / "animals", CAPTIONS)
    arguments = ["--data", str(data), "--start-from", str(tiny_model), "--folder", str(tmp_path / "run")]
    cli.main(["decoder", "--side", "128", "--steps", "1", "--batch", "1", *arguments])
    kandinsky = Kandinsky.load(tmp_path / "run" / "model")
    assert (kandinsky.defaults.height, kandinsky.defaults.width) == (128, 128)


def test_a_picture_world_that_is_mixed_in_leaves_its_words_to_the_model(worded_model: Path, tmp_path: Path) -> None:
    animals = write_animals(tmp_path / "animals", CAPTIONS)
    base = locate.part_folders(str(worded_model))
    recipe = replace(of_model(base), pictures=16)
    recipe = replace(recipe, runs={name: replace(run, batch=2) for name, run in recipe.runs.items()})
    dataset = DatasetConfig((Source(animals),), world=0.25)
    trainer = ModelTrainer(recipe, tmp_path / "run", base, dataset, settings={"start_from": "box"})
    own, world = trainer.data("prior").sets
    assert (own.share, world.share) == (0.75, 0.25) and len(world) == 16
    list(trainer.train("prior", steps=2))
    metadata = read_metadata(trainer.model.path / catalog.DECODER)
    assert "circle" in metadata.words["shapes"] and "otter" in metadata.words["words"]
    card = (trainer.model.path / catalog.DECODER / "README.md").read_text()
    assert "| prior | box | animals, the picture world | 20 | 2 |" in card
    alone = ModelTrainer(recipe, tmp_path / "run", base, DatasetConfig((Source(animals),))).data("prior")
    assert alone.name != trainer.data("prior").name
