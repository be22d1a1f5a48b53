"""A small random model's painted run of the picture world's captions, shared by the tests that score it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kandinsky22 import Kandinsky, text2img
from kandinsky22.backends.work_units import UnitPainter
from kandinsky22.evaluation import generate, world
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.manifest import Run
from kandinsky22.request import Request
from tests.models_on_disk import DIM

COUNT = DIM + 8  # more pictures than the CLIP has dimensions, as a covariance needs


def few_steps(model: str = "tiny-model") -> Request:
    return text2img(
        "",
        model=model,
        num_inference_steps=1,
        prior_num_inference_steps=1,
        guidance_scale=1.0,
        prior_guidance_scale=1.0,
    )


def check_progress(what: str, done: int, total: int) -> None:
    assert 0 < done <= total


class ColourFeatures:
    """Features without weights: the mean colours of a picture and of its left half. Counts pictures in `seen`."""

    name, fingerprint, dim, resize = "colours", "1", 6, "not at all"
    seen = 0

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        self.seen += len(pictures)
        pixels = [np.asarray(picture.convert("RGB"), np.float32) / 255 for picture in pictures]
        rows = [np.concatenate([p.mean((0, 1)), p[:, : p.shape[1] // 2].mean((0, 1))]) for p in pixels]
        return torch.from_numpy(np.stack(rows))


def write_real_pictures(folder: Path, count: int = 40, seed: int = 0) -> Path:
    """Pictures of noise, each with its own mean colour."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(count):
        pixels = rng.integers(0, 256, (64, 64, 3)) * rng.random(3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def painter(tiny_model: Path) -> UnitPainter:
    return UnitPainter(Kandinsky.load(tiny_model), batch=8)


@pytest.fixture(scope="session")
def clip(tiny_model: Path) -> ClipFeatures:
    return ClipFeatures.of_model(Kandinsky.load(tiny_model).stored.prior)


@pytest.fixture(scope="session")
def run(painter: UnitPainter, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`COUNT` captions of the picture world, painted."""
    run = generate.open_run(painter, tmp_path_factory.mktemp("world") / "run", world.captions(COUNT), few_steps())
    list(generate.generate(painter, run))
    return run
