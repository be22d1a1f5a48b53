"""Scenes of shapes and things as training data: pictures on disk, captions, CLIP's batches and labels, and training."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky22.compositions import Scene
from kandinsky22.compositions.thing_scenes import ThingScene
from kandinsky22.compositions.things import LABELS, PICTURES, Things
from kandinsky22.models.clip import CLIPImageProcessor
from kandinsky22.training import mixture
from kandinsky22.training.clip_data import scene_labels, training_examples, validation_examples
from kandinsky22.training.mixture import Mixture
from kandinsky22.training.model_trainer import ModelTrainer
from kandinsky22.training.probes import PLACES, UNSTATED, Probes
from tests.compositions.tiny_things import tiny_things
from tests.training.test_model_trainer import SHORT

THINGS = tiny_things()
PROCESSOR = CLIPImageProcessor(size=32, crop_size=32, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mixture:
    monkeypatch.setattr(mixture, "CHUNK", 8)
    return Mixture(tmp_path, THINGS, 20, 32, processor=PROCESSOR)


def test_half_of_the_scenes_have_things_and_none_is_held_out(pictures: Mixture) -> None:
    many = Mixture(pictures.folder, THINGS, 400, 32)
    share = sum(isinstance(many.scene(i), ThingScene) for i in range(400)) / 400
    assert 0.42 < share < 0.58
    assert not any(
        thing.held_out
        for scene in map(many.scene, range(400))
        if isinstance(scene, ThingScene)
        for thing in scene.things
    )


def test_rendering_resumes_with_the_missing_chunk(pictures: Mixture) -> None:
    before = pictures.pictures(range(20))
    chunks = sorted(pictures.folder.glob("pictures-*/*.npy"))
    assert len(chunks) == 3
    chunks[1].unlink()
    reports: list[tuple[str, int, int]] = []
    again = Mixture(pictures.folder, THINGS, 20, 32, progress=lambda *report: reports.append(report))
    assert torch.equal(again.pictures(range(20)), before)
    assert reports[-1] == ("rendering 32 x 32", 20, 20)
    with pytest.raises(IndexError, match="picture 20 does not exist: there are 20, from 0"):
        again.pictures([20])


def test_a_larger_set_starts_with_the_pictures_of_a_smaller_one(pictures: Mixture) -> None:
    fewer = Mixture(pictures.folder, THINGS, 5, 32)
    assert torch.equal(fewer.pictures(range(5)), pictures.pictures(range(5)))
    assert fewer.series == pictures.series and fewer.name != pictures.name


def test_pictures_of_another_shape_show_the_same_scenes(pictures: Mixture) -> None:
    wide = pictures.stretched(1, 2, 8)
    assert wide.pictures([0]).shape == (1, 3, 32, 64)
    assert wide.depths.shape == (8, 32, 64)
    assert wide.captions([3], np.random.default_rng(0)) == pictures.captions([3], np.random.default_rng(0))


def test_clip_inputs_are_what_the_processor_computes(pictures: Mixture) -> None:
    small = CLIPImageProcessor(size=16, crop_size=16, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    resized = Mixture(pictures.folder, THINGS, 8, 32, processor=small)
    assert resized.clip_inputs(range(2)).shape == (2, 3, 16, 16)
    assert torch.allclose(pictures.clip_inputs(range(4)), pictures.pictures(range(4)), atol=1e-6)


def test_pictures_of_the_same_things_have_the_same_id(pictures: Mixture) -> None:
    indices = np.arange(20)
    examples = training_examples(pictures, indices, np.random.default_rng(0), 6)
    assert len(examples.captions) == 20 and len(examples.negatives) == 6
    scenes = [pictures.scene(i) for i in range(20)]
    contents = [
        (tuple(sorted(thing.hexcode for thing in scene.things)), scene.has_shapes)
        if isinstance(scene, ThingScene)
        else i
        for i, scene in enumerate(scenes)
    ]
    for i in range(20):
        for j in range(20):
            assert (examples.picture_ids[i] == examples.picture_ids[j]) == (contents[i] == contents[j])


def test_labels_are_unstated_where_a_scene_or_a_caption_does_not_determine_them(pictures: Mixture) -> None:
    scenes = [pictures.scene(i) for i in range(20)]
    labels = scene_labels(scenes, THINGS)
    probes = Probes(8, len(THINGS))
    assert probes.loss(torch.zeros(20, 8), labels).shape == (20,)
    assert set(probes.accuracy(torch.zeros(20, 8), labels)) == set(labels)
    for row, scene in enumerate(scenes):
        if isinstance(scene, Scene):
            assert labels["thing"][row] == UNSTATED and (labels["shape"][row] != UNSTATED).all()
        elif scene.relation is None:
            assert labels["thing"][row] == THINGS.number(scene.things[0])
            assert labels["thing_count"][row] == scene.groups[0].count
            assert (labels["shape"][row] == UNSTATED).all() and labels["style"][row] == UNSTATED
        elif scene.has_shapes:
            assert (labels["count"][row] != UNSTATED).sum() == 1
    for seed in range(5):
        captions = pictures.stated_captions(range(20), np.random.default_rng(seed))
        stated = scene_labels(scenes, THINGS, captions)
        for row, caption in enumerate(captions):
            assert (stated["ground"][row] == UNSTATED) == (not caption.ground)
            if not caption.relation and scenes[row].relation is not None:
                assert not ((stated["place"][row] > PLACES.index("alone")) & (stated["count"][row] > 0)).any()


def test_validation_captions_state_everything(pictures: Mixture) -> None:
    examples = validation_examples(pictures, 10, np.random.default_rng(0))
    assert len(examples.captions) == len(examples.negatives) == 10
    assert (examples.caption_labels["ground"] != UNSTATED).all()


def write_things(things: Things, folder: Path) -> None:
    """Write things in the format of `runs/fetch_things.py`."""
    entries = [
        {
            "hexcode": thing.hexcode,
            "group": thing.group,
            "subgroup": thing.subgroup,
            "en": [asdict(name) for name in thing.english],
            "ru": [asdict(name) for name in thing.russian],
            "rows": thing.rows,
            "counted": thing.counted,
            "held_out": thing.held_out,
            "weight": thing.weight,
            "tags": {},
        }
        for thing in things.things
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LABELS).write_text(json.dumps(entries), encoding="utf-8")
    np.save(folder / PICTURES, things.pictures)


def test_things_are_read_from_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no things; download them with: python runs/fetch_things"):
        Things.load(tmp_path)
    write_things(THINGS, tmp_path)
    assert Things.load(tmp_path).things == THINGS.things


def test_all_networks_learn_from_shapes_and_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "CHUNK", 8)
    monkeypatch.setattr("kandinsky22.training.precompute.HELD_OUT", 16)
    monkeypatch.setattr("kandinsky22.training.captions.LEARNED_FROM", 200)
    write_things(THINGS, tmp_path / "things")
    trainer = ModelTrainer(replace(SHORT, things=0.5, movq_pictures=16), tmp_path)
    for network in ("movq", "clip", "prior", "linear-prior", "decoder", "controlnet"):
        lines = list(trainer.train(network, **({} if network == "linear-prior" else {"steps": 2})))
        assert all(np.isfinite(line.loss) for line in lines)
        if network == "clip":
            assert {"named_1", "named_5", "image_thing", "text_drawing", "hard"} <= lines[-1].values.keys()
    metadata = json.loads((trainer.model.path / "decoder" / "kandinsky22.json").read_text(encoding="utf-8"))
    assert "red apple" in metadata["words"]["things"] and "груши" in metadata["words"]["вещи"]
