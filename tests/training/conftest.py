"""Each test has a cache of its own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is computed once and reused."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("KANDINSKY22_CACHE", str(folder))
    return folder
