"""What many tests need."""

from pathlib import Path

import pytest

from tests.models_on_disk import write_tiny_model

EXPENSIVE_FILES = (  # the longest first
    "training/test_docs.py",
    "training/test_model_trainer.py",
    "training/test_scale.py",
    "training/test_against_diffusers.py",
    "training/test_precompute.py",
    "evaluation/test_suite.py",
    "training/test_settings.py",
    "test_box_weights.py",
    "test_make.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that parallel processes (`-n 2 --dist loadfile`) end together."""
    tests = Path(__file__).parent
    ranks = {tests / name: rank for rank, name in enumerate(EXPENSIVE_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model with random weights. Do not change it; copy it."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-model"
    write_tiny_model(folder)
    return folder
