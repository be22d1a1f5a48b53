"""What many tests need: a small model on disk; and the last line of a run, which says what did not run."""

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.models_on_disk import write_tiny_model

EXPENSIVE_FILES = (  # the longest first
    "training/test_scale.py",
    "cli/test_evaluate.py",
    "training/test_model_trainer.py",
    "training/test_docs.py",
    "evaluation/test_generate.py",
    "training/test_plan.py",
    "benchmarks/test_tables.py",
    "test_box_weights.py",
    "training/test_against_diffusers.py",
    "training/test_settings.py",
    "training/test_mixture.py",
    "test_docs.py",
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


class SlowTests:
    """Counts the slow tests that a run leaves out, and those that need a browser, and prints the numbers at its end."""

    def __init__(self) -> None:
        self.deselected = 0
        self.without_browser = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if shutil.which("chromium") is None:
            self.without_browser = sum(item.get_closest_marker("browser") is not None for item in session.items)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.deselected += sum(item.get_closest_marker("slow") is not None for item in items)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):  # in a process of pytest-xdist, which sends this to the main one
            session.config.workeroutput["deselected"] = self.deselected
            session.config.workeroutput["without_browser"] = self.without_browser

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Every process of pytest-xdist collects and deselects the same tests; the main process collects none."""
        output = getattr(node, "workeroutput", {})
        self.deselected = max(self.deselected, output.get("deselected", 0))
        self.without_browser = max(self.without_browser, output.get("without_browser", 0))

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        if self.without_browser and not hasattr(config, "workeroutput"):
            print(f"not run: {self.without_browser} tests of the studio, since there is no chromium; install it")
        if self.deselected and not hasattr(config, "workeroutput"):
            count = f"{self.deselected} slow test{'s' * (self.deselected != 1)}"
            print(f"not run: {count}; run everything with: make test ARGS=\"-m ''\"")


def pytest_configure(config: pytest.Config) -> None:
    """Register what counts the slow tests; let tests send Ctrl-C also where the run ignores it, as a script's job."""
    config.pluginmanager.register(SlowTests())
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
