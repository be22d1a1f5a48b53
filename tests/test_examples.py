"""All examples run on the small random model; the minimal one paints what the engine paints."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kandinsky22 import Kandinsky
from kandinsky22.request import Sampling

FOLDER = Path(__file__).parents[1] / "examples"
APPS = {"bot_fusionbrain", "gradio_app", "streamlit_app"}  # run until they are stopped; see tests/integrations
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in APPS)
PROMPT = "two green stars to the left of a black ring"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_prints_the_paths_of_its_pictures(example: Path, tiny_model: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, example, "a red circle", tiny_model], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    paths = result.stdout.split()
    assert paths and all((tmp_path / path).is_file() for path in paths)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_without_arguments_uses_the_included_model(example: Path) -> None:
    assert re.search(r'^PROMPT, MODEL = ".*", "box"$', example.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("prior_sampler", "sampler"), [("unclip", "ddpm"), ("ddim", "unipc")])
def test_minimal_example_paints_what_the_engine_paints(prior_sampler: str, sampler: str) -> None:
    """With the model in the box and the same seed, to one level of 255: the engine computes by faster layers, and ahead
    what depends on the timestep alone, which rounds differently."""
    minimal = runpy.run_path(str(FOLDER / "minimal.py"))
    prior = Sampling(sampler=prior_sampler, steps=5, guidance_scale=2.0)
    decoder = Sampling(sampler=sampler, steps=6, guidance_scale=3.0)
    picture = minimal["paint"](PROMPT, "box", 11, prior, decoder)
    (painting,) = Kandinsky.load("box", device="cpu", dtype="float32")(
        PROMPT,
        seed=11,
        prior_sampler=prior_sampler,
        prior_num_inference_steps=5,
        prior_guidance_scale=2.0,
        sampler=sampler,
        num_inference_steps=6,
        guidance_scale=3.0,
    )
    bare, engine = (np.asarray(image, dtype=int) for image in (picture, painting.image))
    assert bare.std() > 10, "the picture is flat, so the comparison shows nothing"
    assert np.abs(bare - engine).max() <= 1
