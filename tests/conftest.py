"""What many tests need: a small model on disk; and the last line of a run, which says what did not run."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.models_on_disk import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model with random weights. Do not change it; copy it."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-model"
    write_tiny_model(folder)
    return folder


class SlowTests:
    """Counts the slow tests that a run leaves out, and prints their number at its end."""

    def __init__(self) -> None:
        self.deselected = 0

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.deselected += sum(item.get_closest_marker("slow") is not None for item in items)

    def pytest_unconfigure(self) -> None:
        if self.deselected:
            print(f"not run: {self.deselected} slow tests; run them too with: make test ARGS=\"-m ''\"")


def pytest_configure(config: pytest.Config) -> None:
    """Register what counts the slow tests."""
    config.pluginmanager.register(SlowTests())
