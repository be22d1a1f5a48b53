"""Prompt fidelity: verdicts and rates of true pictures and of wrong ones."""

import numpy as np
import pytest
from PIL import Image

from kandinsky22.compositions import Scene, render, sample, wilson
from kandinsky22.evaluation.fidelity import ATTRIBUTES, Rate, rates, verdict


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample(np.random.default_rng([5, i])) for i in range(12)]


@pytest.fixture(scope="module")
def pictures(scenes: list[Scene]) -> list[Image.Image]:
    return [Image.fromarray(render(scene, 128)) for scene in scenes]


def test_a_rendered_scene_is_right_in_every_attribute(scenes: list[Scene], pictures: list[Image.Image]) -> None:
    verdicts = [verdict(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    assert all(all(of.values()) for of in verdicts)
    assert {name: rate.share for name, rate in rates(verdicts).items()} == dict.fromkeys(ATTRIBUTES, 1.0)
    assert rates(verdicts)["relation"].of == sum(scene.relation is not None for scene in scenes) < len(scenes)


def test_a_picture_of_another_scene_is_wrong(scenes: list[Scene], pictures: list[Image.Image]) -> None:
    verdicts = [verdict(picture, scene) for picture, scene in zip(pictures[1:] + pictures[:1], scenes, strict=True)]
    assert rates(verdicts)["whole"].right == 0


def test_plain_is_every_attribute_but_the_style(scenes: list[Scene], pictures: list[Image.Image]) -> None:
    grey = [picture.convert("L") for picture in pictures]
    verdicts = [verdict(picture, scene) for picture, scene in zip(grey, scenes, strict=True)]
    for of in verdicts:
        assert of["plain"] == all(value for name, value in of.items() if name not in ("style", "whole", "plain"))
        assert of["whole"] == (of["plain"] and of["style"])


def test_an_attribute_in_no_verdict_has_no_rate() -> None:
    assert rates([{"ground": True}, {"ground": False, "style": False}]) == {"ground": Rate(1, 2), "style": Rate(0, 1)}


def test_a_rate_has_its_wilson_interval() -> None:
    rate = Rate(30, 40)
    assert rate.share == 0.75 and rate.interval == wilson(30, 40)
    assert str(rate) == "75 (60-86)"
