"""Every example runs, on the small random model."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_says_where_its_pictures_are(example: Path, tiny_model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, example, "a red circle", tiny_model], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    written = done.stdout.split()
    assert written and all((tmp_path / name).is_file() for name in written)
