"""The tasks from the command line on a small random model: painting, replaying, and error messages."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky22 import Kandinsky
from kandinsky22.cli.app import run
from kandinsky22.imaging.images import read_recipe
from tests.cli.workspace import FEW_PRIOR_STEPS, FEW_STEPS, size, succeed

pytestmark = pytest.mark.usefixtures("workspace")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["strip", "a red circle"], "takes 2 texts or files or more"),
        (["mix", "a", "b", "--weights", "1"], "2 embeddings need as many weights, got 1"),
        (["mix", "a", "b", "c", "--slerp", "0.5"], "--slerp takes exactly two"),
        (["embed", "nothing.safetensors"], "is not an embedding"),
        (["embed", "a", "b", "-o", "one.safetensors"], "names one file"),
        (["film", "a", "b", "-o", "film.avi", "--frames", "2", *FEW_STEPS], "written as .gif, .apng or .mp4"),
        (["img2img", "a star"], "img2img needs --image: the picture to start from"),
        (["img2img", "--image", "cat.png"], "img2img needs a prompt"),
        (["inpaint", "a star", "--image", "cat.png", "--mask-image", "nowhere.png"], "nowhere.png does not exist"),
        (["variations", "cat.png", "star.jpg"], "variations takes one picture"),
        (["interpolate"], "needs texts or files"),
        (["mix"], "two texts or files or more"),
        (["mix", "a", "b", "--slerp", "3"], "--slerp goes from 0 to 1"),
        (["mix", "a", "b", "--length=-1"], "--length must be above 0"),
        (["mix", "a", "b", "-o", "m.txt"], "ends in .safetensors"),
        (["film", "a", "b", "--fps", "0"], "fps must be from 0.1"),
        (["film", "a", "b", "--fps", "nan"], "fps must be from 0.1"),
        (["film", "a", "b", "--frames", "1"], "at least two frames"),
        (["strip", "a", "b", "-o", "way.bmp"], "written as PNG"),
        (["film", "a", "b", "-o", "cat.png/below/way.gif"], "cannot write into"),
        (["a red circle", "-o", "way.bmp"], "written as PNG"),
        (["doctor", "--dtype", "banana"], "dtype must be one of"),
        (["doctor", "--size", "1"], "height must be"),
        (["inpaint", "a", "--image", "cat.png", "--mask-image", "cat.png", "--mask-mode", "grey"], "invalid choice"),
    ],
)
def test_mistakes_are_refused_in_one_sentence_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    before = sorted(path.name for path in Path().iterdir())
    monkeypatch.setattr(Kandinsky, "stream_many", lambda *_: pytest.fail("it painted"))
    assert run([*arguments, "--model", "tiny-model"]) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == before


def test_replay_finds_input_pictures_or_asks_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    succeed("img2img", "a star", "--image", "cat.png", "--strength", "0.6", *FEW_STEPS, "-o", "first.png")
    recipe = read_recipe("first.png")
    assert recipe.request.start is not None and recipe.request.start.image.name == "cat.png"
    assert json.loads(recipe.request.to_json())["start"]["image"]["picture"].keys() == {
        "name",
        "height",
        "width",
        "sha256",
    }
    succeed("replay", "first.png", "-o", "again")
    assert "the pixels are those of first.png" in capsys.readouterr().out
    Path("cat.png").rename("moved.png")
    assert run(["replay", "first.png", "--model", "tiny-model"]) == 2
    assert "pass it with --picture FILE" in capsys.readouterr().err
    succeed("replay", "first.png", "--picture", "moved.png", "-o", "again")
    Path("star.jpg").rename("cat.png")  # a different picture of the same name
    assert run(["replay", "first.png", "--model", "tiny-model"]) == 2


def test_every_task_replays_with_the_same_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    """The second of two pictures, which is painted in its batch again; the noise is rotated towards another seed's."""
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    Image.fromarray(mask).save("mask.png")
    succeed("embed", "a ring", *FEW_PRIOR_STEPS, "-o", "ring.safetensors")
    for name, arguments in {
        "text2img": ["a star"],
        "img2img": ["a star", "--image", "cat.png", "--strength", "0.6"],
        "interpolate": ["a star", "cat.png", "ring.safetensors", "--weights", "0.5,-0.3,0.8"],
        "variations": ["cat.png"],
        "inpaint": ["a star", "--image", "cat.png", "--mask-image", "mask.png", "--feather", "2"],
        "outpaint": ["a star", "--image", "cat.png", "--right", "32"],
        "controlnet": ["a star", "--hint", "cat.png", "--image", "star.jpg"],
    }.items():
        varied = ["-n", "2", "--variation-seed", "8", "--variation-strength", "0.4"]
        succeed(name, *arguments, *varied, *FEW_STEPS, "-o", f"{name}.png", "-q")
        capsys.readouterr()
        succeed("replay", f"{name}-4.png", "-o", "again", "-q")
        assert f"the pixels are those of {name}-4.png\n" in capsys.readouterr().out, name


def test_every_task_runs_from_the_command_line() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    Image.fromarray(mask).save("mask.png")
    for name, arguments in {
        "img2img": ["a star", "--image", "cat.png", "--strength", "0.5", "--aspect", "2:1"],
        "interpolate": ["a star", "cat.png", "--weights", "0.5,0.5"],
        "variations": ["cat.png", "-n", "2"],
        "inpaint": ["a star", "--image", "cat.png", "--mask-image", "mask.png", "--feather", "2"],
        "outpaint": ["a star", "--image", "cat.png", "--right", "32", "--paste-back", "no"],
        "controlnet": ["a star", "--hint", "cat.png", "--image", "star.jpg"],
    }.items():
        succeed(name, *arguments, *FEW_STEPS, "-o", f"{name}.png", "-q")
    assert size("img2img.png") == (128, 64)
    assert size("outpaint.png") == (96, 64)
