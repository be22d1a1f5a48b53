"""All examples run on the small random model."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_prints_the_paths_of_its_pictures(example: Path, tiny_model: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, example, "a red circle", tiny_model], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    paths = result.stdout.split()
    assert paths and all((tmp_path / path).is_file() for path in paths)
