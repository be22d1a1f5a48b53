"""The wheel works: built as a release is, installed into a new environment outside the checkout, it paints."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky22 import Kandinsky

ROOT = Path(__file__).parents[1]
DEPENDENCIES = ("torch", "numpy", "PIL", "safetensors", "tokenizers", "rich", "jinja2")
PROMPT = "three red circles over a blue triangle"


def run(*command: str | Path, cwd: Path) -> str:
    """The standard output of a command that does not see the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_lending_path(python: Path, cwd: Path) -> None:
    """Let an environment import the dependencies that are installed here, so that no gigabytes are downloaded."""
    folders = set()
    for name in DEPENDENCIES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        folders.add(str(Path(spec.submodule_search_locations[0]).parent))
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=cwd).strip()
    Path(site, "lent.pth").write_text("\n".join(folder for folder in sys.path if folder in folders))


@pytest.mark.slow
def test_the_built_wheel_paints_outside_the_checkout(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")  # built from the sdist beside it, as `python -m build` does

    run(sys.executable, "-m", "venv", tmp_path / "environment", cwd=tmp_path)
    python = tmp_path / "environment" / "bin" / "python"
    write_lending_path(python, tmp_path)
    run(python, "-m", "pip", "install", "--no-index", "--no-deps", wheel, cwd=tmp_path)
    home = run(python, "-c", "import kandinsky22; print(kandinsky22.__file__)", cwd=tmp_path)
    assert Path(home.strip()).is_relative_to(tmp_path / "environment")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ["--seed", "7", "--num-images", "1", "--num-inference-steps", "4", "--device", "cpu", "--output"]
    run(python.with_name("kandinsky22"), PROMPT, *options, elsewhere, cwd=elsewhere)
    (path,) = elsewhere.glob("*-7.png")
    (painting,) = Kandinsky.load(device="cpu")(PROMPT, seed=7, num_inference_steps=4)
    difference = np.asarray(Image.open(path), dtype=int) - np.asarray(painting.image, dtype=int)
    assert np.abs(difference).max() <= 1
