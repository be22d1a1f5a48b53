"""Fixtures of the command line's tests."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.fake_backend import FakeBackend


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBackend:
    """A fake backend in the place of every model; the current folder is empty."""
    return FakeBackend().install(monkeypatch, tmp_path)


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> Path:
    """The current folder, with cat.png and star.jpg of 64x64 random pixels, and the random model tiny-model."""
    monkeypatch.chdir(tmp_path)
    Path("tiny-model").symlink_to(tiny_model)
    rng = np.random.default_rng(1)
    for name in ("cat.png", "star.jpg"):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(name)
    return tmp_path
