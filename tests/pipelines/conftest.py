"""Pipelines of the tiny model, one per module of tests."""

from pathlib import Path

import pytest

from kandinsky22.checkpoints.catalog import DEPTH, INPAINT
from kandinsky22.pipelines import (
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
)


@pytest.fixture(scope="module")
def prior(tiny_model: Path) -> KandinskyV22PriorPipeline:
    return KandinskyV22PriorPipeline.from_pretrained(tiny_model / "prior")


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> KandinskyV22Pipeline:
    return KandinskyV22Pipeline.from_pretrained(tiny_model / "decoder")


@pytest.fixture(scope="module")
def img2img(tiny_model: Path) -> KandinskyV22Img2ImgPipeline:
    return KandinskyV22Img2ImgPipeline.from_pretrained(tiny_model / "decoder")


@pytest.fixture(scope="module")
def inpaint(tiny_model: Path) -> KandinskyV22InpaintPipeline:
    return KandinskyV22InpaintPipeline.from_pretrained(tiny_model / INPAINT)


@pytest.fixture(scope="module")
def depth(tiny_model: Path) -> KandinskyV22ControlnetPipeline:
    return KandinskyV22ControlnetPipeline.from_pretrained(tiny_model / DEPTH)
