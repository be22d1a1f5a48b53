"""What the oracle finds right, as rates: true pictures, wrong ones, and sets that are put together."""

import numpy as np
import pytest
from PIL import Image

from kandinsky22.compositions import Scene, render, sample, wilson
from kandinsky22.evaluation.fidelity import ATTRIBUTES, Rate, merged, rates, verdict


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample(np.random.default_rng([5, i])) for i in range(12)]


@pytest.fixture(scope="module")
def shown(scenes: list[Scene]) -> list[Image.Image]:
    return [Image.fromarray(render(scene, 128)) for scene in scenes]


def test_a_true_picture_is_all_right(scenes: list[Scene], shown: list[Image.Image]) -> None:
    told = [verdict(picture, scene) for picture, scene in zip(shown, scenes, strict=True)]
    assert all(all(of.values()) for of in told)
    assert {name: rate.share for name, rate in rates(told).items()} == dict.fromkeys(ATTRIBUTES, 1.0)
    assert rates(told)["relation"].of == sum(scene.relation is not None for scene in scenes) < len(scenes)


def test_another_scenes_picture_is_not(scenes: list[Scene], shown: list[Image.Image]) -> None:
    told = [verdict(picture, scene) for picture, scene in zip(shown[1:] + shown[:1], scenes, strict=True)]
    assert rates(told)["whole"].right == 0


def test_all_but_the_style_may_be_right(scenes: list[Scene], shown: list[Image.Image]) -> None:
    grey = [picture.convert("L") for picture in shown]
    told = [verdict(picture, scene) for picture, scene in zip(grey, scenes, strict=True)]
    for of in told:
        assert of["plain"] == all(value for name, value in of.items() if name not in ("style", "whole", "plain"))
        assert of["whole"] == (of["plain"] and of["style"])


def test_rates_of_two_sets_add_up(scenes: list[Scene], shown: list[Image.Image]) -> None:
    told = [verdict(picture, scene) for picture, scene in zip(shown[::-1], scenes, strict=True)]
    assert merged([rates(told[:5]), rates(told[5:9]), rates(told[9:])]) == rates(told)
    alone = [{"ground": True}]
    assert merged([rates(alone), rates([{"style": False}])]) == {"ground": Rate(1, 1), "style": Rate(0, 1)}


def test_a_rate_says_where_it_lies() -> None:
    rate = Rate(30, 40)
    assert rate.share == 0.75 and rate.interval == wilson(30, 40)
    assert str(rate) == "75 (60-86)"
