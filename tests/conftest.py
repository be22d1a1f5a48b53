"""What many tests need."""

from pathlib import Path

import pytest

from tests.models_on_disk import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model with random weights. Do not change it; copy it."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-model"
    write_tiny_model(folder)
    return folder
