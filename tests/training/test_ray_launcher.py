"""Ray Train's workers learn what the supervisor's processes learn, and say why they stop."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from kandinsky22.compositions import caption, render, sample
from kandinsky22.training import cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(8):
        scene = sample(np.random.default_rng(i))
        Image.fromarray(render(scene, 64)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption(scene))
    yield folder
    ray.shutdown()


def train(pictures: Path, folder: Path, *options: str) -> bytes:
    """The trained prior's file."""
    fixed = ["prior", "--data", str(pictures), "--steps", "2", "--batch", "4", "--processes", "2"]
    assert not cli.main([*fixed, "--folder", str(folder), *options])
    return next((folder / "model" / "prior" / "prior").glob("*.safetensors")).read_bytes()


def test_two_workers_learn_what_two_processes_learn(pictures: Path, tmp_path: Path) -> None:
    assert train(pictures, tmp_path / "ray", "--backend", "ray") == train(pictures, tmp_path / "local")


def test_an_address_without_ray_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--address is of a Ray cluster; add --backend ray"):
        train(pictures, tmp_path, "--address", "auto")
