"""The oracle: it recognises rendered scenes, also blurred and noisy ones, and rejects wrong descriptions."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from kandinsky22.compositions import RELATIONS, STYLES, Group, Scene, judge, perturb, read, render, sample, wilson
from kandinsky22.compositions.captions import OPPOSITES
from kandinsky22.compositions.pieces import visible


def random_scenes(number: int, seed: int, height: float = 1.0, width: float = 1.0) -> list[Scene]:
    return [sample(np.random.default_rng((seed, index)), height=height, width=width) for index in range(number)]


@pytest.mark.parametrize(
    ("side", "height", "width", "number"),
    [(128, 1.0, 1.0, 140), (64, 1.0, 1.0, 140), (128, 1.0, 2.0, 50), (64, 2.0, 1.0, 50), (96, 1.5, 1.0, 40)],
)
def test_rendered_scenes_match_their_descriptions(side: int, height: float, width: float, number: int) -> None:
    verdicts = [judge(read(render(scene, side)), scene) for scene in random_scenes(number, 101, height, width)]
    for key in ("ground", "style", "present", "colors", "shape", "count", "relation", "whole"):
        values = [verdict[key] for verdict in verdicts if key in verdict]
        assert sum(values) >= 0.985 * len(values), key


def test_pictures_of_other_scenes_are_rejected() -> None:
    scenes = random_scenes(50, 102)
    readings = [read(render(scene, 64)) for scene in scenes]
    verdicts = [judge(reading, other) for reading, other in zip(readings, scenes[1:] + scenes[:1], strict=True)]
    assert sum(verdict["whole"] for verdict in verdicts) == 0
    assert sum(verdict["colors"] for verdict in verdicts) < 0.2 * len(verdicts)
    assert sum(verdict["ground"] for verdict in verdicts) < 0.4 * len(verdicts)


def test_one_wrong_detail_is_rejected() -> None:
    for scene in random_scenes(50, 103):
        wrong = perturb(scene, np.random.default_rng(scene.seed))
        assert not judge(read(render(scene, 128)), wrong)["whole"]


def test_each_verdict_depends_on_its_own_detail() -> None:
    groups = (Group(2, "red", "ring"), Group(1, "teal", "star"))
    scene = Scene.of(groups, "above", "cream", "arcs", np.random.default_rng(4))
    reading = read(render(scene, 128))
    all_true = dict.fromkeys(("ground", "style", "present", "colors", "shape", "count", "relation", "whole"), True)
    assert judge(reading, scene) == all_true

    def wrong(changed: Scene) -> set[str]:
        return {key for key, value in judge(reading, changed).items() if not value}

    assert wrong(replace(scene, ground="pink")) == {"ground", "whole"}
    assert wrong(replace(scene, style="ink")) == {"style", "whole"}
    assert wrong(replace(scene, relation=OPPOSITES["above"])) == {"relation", "whole"}
    assert wrong(replace(scene, groups=(Group(3, "red", "ring"), groups[1]))) == {"count", "whole"}
    assert wrong(replace(scene, groups=(Group(2, "red", "circle"), groups[1]))) == {"shape", "whole"}
    assert wrong(replace(scene, groups=groups[:1], relation=None)) == {"colors", "whole"}
    missing = replace(scene, groups=(groups[0], Group(1, "black", "star")))
    assert wrong(missing) == {"present", "colors", "shape", "count", "relation", "whole"}
    assert "relation" not in judge(reading, replace(scene, groups=groups[:1], relation=None))


@pytest.mark.parametrize("side", [64, 128, 200])
def test_centres_and_areas_are_in_scene_units(side: int) -> None:
    for scene in random_scenes(10, 104, width=1.5):
        reading = read(render(scene, side))
        for piece, share in zip(scene.pieces, visible(scene.pieces), strict=True):
            seen = min(reading.pieces, key=lambda seen: (seen.x - piece.x) ** 2 + (seen.y - piece.y) ** 2)
            assert (seen.color, seen.shape) == (piece.color, piece.shape)
            assert abs(seen.x - piece.x) < (0.015 if share == 1 else 0.05)
            assert abs(seen.y - piece.y) < (0.015 if share == 1 else 0.05)
            assert 0.25 < seen.area / piece.r**2 < 3.3
            assert seen.overlap > 0.75


def test_slightly_blurred_pictures_are_recognised() -> None:
    def blurred(scene: Scene) -> np.ndarray:
        return np.asarray(Image.fromarray(render(scene, 128)).filter(ImageFilter.GaussianBlur(1.2)))

    scenes = random_scenes(60, 105)
    assert sum(judge(read(blurred(scene)), scene)["whole"] for scene in scenes) >= 58


def test_noisy_pictures_are_recognised() -> None:
    def noisy(scene: Scene) -> np.ndarray:
        noise = np.random.default_rng(scene.seed).normal(0, 5, (128, 128, 3))
        return np.clip(render(scene, 128) + noise, 0, 255).astype(np.uint8)

    scenes = random_scenes(60, 107)
    assert sum(judge(read(noisy(scene)), scene)["whole"] for scene in scenes) >= 58


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_classified(style: str) -> None:
    scenes = [replace(scene, style=style) for scene in random_scenes(40, 108)]
    assert sum(read(render(scene, 128)).style == style for scene in scenes) >= 39


def test_overlapping_pieces_are_recognised() -> None:
    """The hidden part of an outline counts neither for nor against a shape."""
    groups = (Group(1, "red", "circle", "large"), Group(2, "blue", "star"))
    hidden = 0
    for seed in range(30):
        scene = Scene.of(
            groups, RELATIONS[seed % 4], "cream", "", np.random.default_rng(seed), style=STYLES[seed % 5], overlap=True
        )
        hidden += min(visible(scene.pieces)) < 0.95
        assert judge(read(render(scene, 128)), scene)["whole"], seed
    assert hidden > 15


def test_empty_and_random_pictures_are_read_without_error() -> None:
    blank = read(np.full((64, 64, 3), 250, np.uint8))
    assert (blank.ground, blank.pieces) == ("white", ())
    assert judge(blank, random_scenes(1, 106)[0])["whole"] is False
    noise = np.random.default_rng(0).integers(0, 256, (128, 160, 3), dtype=np.uint8)
    assert len(read(noise).pieces) < 5
    assert read(np.zeros((128, 128, 3), np.uint8)).pieces[0].color == "black"


@pytest.mark.parametrize("pixels", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_read_refuses_other_arrays(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\]"):
        read(pixels)


def test_wilson_interval_has_the_textbook_values() -> None:
    low, high = wilson(95, 100)
    assert (round(low, 3), round(high, 3)) == (0.888, 0.978)  # the textbook value
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)
