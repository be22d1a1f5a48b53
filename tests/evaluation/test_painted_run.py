"""Painted runs: which settings may score them, and which machines painted them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kandinsky22 import Kandinsky, text2img
from kandinsky22.evaluation import protocol, world
from kandinsky22.evaluation.captions import Captions
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.painted_run import find_painted_run
from kandinsky22.imaging.images import Painting, read_recipe
from kandinsky22.request import Request, Sampling
from tests.evaluation.conftest import COUNT, check_progress, few_steps
from tests.models_on_disk import write_tiny_model


def test_a_painted_run_is_found_without_its_model(run: Run, tmp_path: Path) -> None:
    found = find_painted_run(run.folder, world.captions(COUNT), few_steps())
    assert found is not None and found.items == run.items
    open_settings = text2img("", model="tiny-model")
    assert find_painted_run(run.folder, world.captions(COUNT), open_settings) is not None
    assert find_painted_run(tmp_path, world.captions(COUNT), few_steps()) is None


def test_a_painted_run_refuses_settings_other_than_its_own(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    """All given settings are compared, and the weights, if the model is given."""
    captions, request = world.captions(COUNT), few_steps()
    as_painted: dict[str, Any] = {"seed": 0, "batch": 8, "dtype": "float32", "model": Kandinsky.load(tiny_model)}
    assert find_painted_run(run.folder, captions, request, **as_painted) is not None
    # without the model, the steps of a speed are unknown and not compared
    assert find_painted_run(run.folder, captions, replace(request, speed="fast")) is not None
    with pytest.raises(ValueError, match=r"was created with request.decoder.*"):
        find_painted_run(run.folder, captions, replace(request, speed="fast"), **as_painted)
    other = tmp_path / "tiny-model"  # the same name with other weights
    write_tiny_model(other, seed=1)
    cases: list[tuple[str, Captions, Request, dict[str, Any]]] = [
        ("captions.sha256", world.captions(COUNT - 1), request, {}),
        ("request.decoder.steps 1, and now it is 2", captions, replace(request, decoder=Sampling(steps=2)), {}),
        ('request.model "tiny-model", and now it is "box"', captions, replace(request, model="box"), {}),
        ("seed 0, and now it is 1", captions, request, {"seed": 1}),
        ("batch 8, and now it is 4", captions, request, {"batch": 4}),
        ('dtype "float32", and now it is "bfloat16"', captions, request, {"dtype": "bfloat16"}),
        ("weights.unet", captions, request, {"model": Kandinsky.load(other)}),
    ]
    for difference, given_captions, given_request, settings in cases:
        with pytest.raises(ValueError, match=f"was created with {difference}"):
            find_painted_run(run.folder, given_captions, given_request, **settings)


def test_protocol_has_the_commands_that_painted_and_scored(run: Run, clip: ClipFeatures) -> None:
    painted = replace(run, settings={**run.settings, "command": "kandinsky22 evaluate world --steps 1"})
    report = world.report(painted, clip, show_progress=check_progress, command="kandinsky22 evaluate world")
    assert report.protocol["command"] == "kandinsky22 evaluate world --steps 1"
    assert report.protocol["scored_by"] == "kandinsky22 evaluate world"
    same = world.report(run, clip, show_progress=check_progress, command="kandinsky22 evaluate world")
    assert "scored_by" not in same.protocol


def test_protocol_lists_every_machine_that_painted(run: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(run.folder, tmp_path / "run"))
    for item in copy.items[:3]:
        path = copy.picture(item)
        recipe = read_recipe(path)
        with Image.open(path) as picture:
            Painting(picture.convert("RGB"), recipe.request, {**recipe.made_by, "device": "cuda"}).save(path)
    machines = protocol.painting_machines(copy)
    assert [(machine["device"], machine["pictures"]) for machine in machines] == [("cpu", COUNT - 3), ("cuda", 3)]
