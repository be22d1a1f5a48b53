"""The wheel works: built as a release is, and installed with only what it declares outside the checkout, it paints."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from kandinsky22 import Kandinsky

ROOT = Path(__file__).parents[1]
PROMPT = "three red circles over a blue triangle"
IMPORT_ALL = """
import importlib, pkgutil, kandinsky22
names = [module.name for module in pkgutil.walk_packages(kandinsky22.__path__, "kandinsky22.")]
for name in names:
    # of the extras [serve], [ray] and [mcp]
    is_extra = name.startswith("kandinsky22.server.") or name.rpartition(".")[2].startswith(("ray", "mcp_server"))
    if not (is_extra or name.endswith(("__main__", "triton_kernels")) or "kernels-" in name):  # Triton: torch for GPUs
        importlib.import_module(name)
print(len(names))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The standard output of a command that does not see the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def required_by(requirements: Iterable[str]) -> set[tuple[str, str]]:
    """The distributions that requirements name, and those that these require, each with every extra in use or ""."""
    found: set[tuple[str, str]] = set()
    todo = [(text, "") for text in requirements]
    while todo:
        text, extra = todo.pop()
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            new = {(requirement.name, extra) for extra in ("", *requirement.extras)} - found
            found |= new
            todo += [(text, extra) for name, extra in new for text in metadata.requires(name) or ()]
    return found


def link_distributions(names: Iterable[str], site: Path) -> None:
    """Make distributions of this environment importable in another: links to their packages, so nothing is fetched."""
    for name in names:
        files = metadata.files(name)
        assert files, f"{name} is installed without a list of its files"
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(metadata.distribution(name).locate_file(top))


@pytest.mark.slow
def test_the_built_wheel_paints_with_only_its_declared_dependencies(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")  # built from the sdist beside it, as `python -m build` does

    run(sys.executable, "-m", "venv", tmp_path / "environment", cwd=tmp_path)
    python = tmp_path / "environment" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-index", "--no-deps", wheel, cwd=tmp_path)
    code = "import json, sysconfig; from importlib import metadata\n"
    code += "print(json.dumps([sysconfig.get_path('purelib'), metadata.requires('kandinsky22')]))"
    site, declared = json.loads(run(python, "-c", code, cwd=tmp_path))
    link_distributions({name for name, _ in required_by(declared)}, Path(site))
    assert not (Path(site) / "diffusers").exists() and not (Path(site) / "pytest").exists()
    assert int(run(python, "-c", IMPORT_ALL, cwd=tmp_path)) > 100  # an import that is not declared fails

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ["--seed", "7", "--num-images", "1", "--num-inference-steps", "4", "--device", "cpu", "--output"]
    run(python.with_name("kandinsky22"), PROMPT, *options, elsewhere, cwd=elsewhere)
    (path,) = elsewhere.glob("*-7.png")
    (painting,) = Kandinsky.load(device="cpu")(PROMPT, seed=7, num_inference_steps=4)
    difference = np.asarray(Image.open(path), dtype=int) - np.asarray(painting.image, dtype=int)
    assert np.abs(difference).max() <= 1
