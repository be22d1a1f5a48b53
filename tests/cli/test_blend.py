"""`embed`, `mix`, `strip`, `film`, and tasks that begin with pictures, on a small random model."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky22 import Kandinsky
from kandinsky22.cli.app import run
from kandinsky22.imaging.images import read_recipe
from kandinsky22.request import Embedding
from kandinsky22.request.embedding import mix

FEW = ["--seed", "3", "--prior-num-inference-steps", "2"]
FEWER = [*FEW, "--steps", "2"]


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> None:
    """A folder with two pictures; the tiny model is in it as ./tiny."""
    monkeypatch.chdir(tmp_path)
    Path("tiny-model").symlink_to(tiny_model)
    rng = np.random.default_rng(1)
    for name in ("cat.png", "star.jpg"):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(name)


def size(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def done(*arguments: str) -> None:
    assert run([*arguments, "--model", "tiny-model"]) == 0


def test_embeddings_are_saved_mixed_and_painted(capsys: pytest.CaptureFixture[str]) -> None:
    done("embed", "a red circle", "cat.png", *FEW)
    assert capsys.readouterr().out.split() == ["out/a-red-circle.safetensors", "out/cat.safetensors"]
    text, cat = (Embedding.load(f"out/{name}.safetensors") for name in ("a-red-circle", "cat"))
    done(
        "mix", "out/a-red-circle.safetensors", "out/cat.safetensors", "--weights", "0.25,0.75", "-o", "both.safetensors"
    )
    assert Embedding.load("both.safetensors") == mix([text, cat], [0.25, 0.75])
    done("mix", "out/a-red-circle.safetensors", "out/cat.safetensors", "--slerp", "0.5", "-o", "half.safetensors")
    assert Embedding.load("half.safetensors") == text.slerp(cat, 0.5)
    done("interpolate", "both.safetensors", *FEWER, "-o", "both.png")
    assert size("both.png") == (64, 64)


def test_negative_weights_need_no_equals_sign() -> None:
    done("embed", "a red circle", "a star", *FEW)
    one, two = (Embedding.load(f"out/{name}.safetensors") for name in ("a-red-circle", "a-star"))
    done("mix", "out/a-red-circle.safetensors", "out/a-star.safetensors", "--weights", "-0.5,1", "-o", "m.safetensors")
    made = Embedding.load("m.safetensors")
    assert made == mix([one, two], [-0.5, 1])
    assert made.made_by["weights"] == [-0.5, 1]


def test_a_strip_and_films(capsys: pytest.CaptureFixture[str]) -> None:
    done("strip", "a red circle", "cat.png", *FEWER, "--frames", "3", "-o", "way.png")
    assert size("way.png") == (3 * 64, 64)
    for name in ("way.gif", "way.apng"):
        done("film", "a red circle", "cat.png", "a star", *FEWER, "--frames", "4", "--loop", "--fps", "8", "-o", name)
        with Image.open(name) as film:
            assert (film.n_frames, film.info["loop"], film.info["duration"]) == (4, 0, pytest.approx(125, abs=5))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["strip", "a red circle"], "takes 2 texts or files or more"),
        (["mix", "a", "b", "--weights", "1"], "2 embeddings need as many weights, got 1"),
        (["mix", "a", "b", "c", "--slerp", "0.5"], "--slerp goes between two"),
        (["embed", "nothing.safetensors"], "holds no embedding"),
        (["embed", "a", "b", "-o", "one.safetensors"], "names one file"),
        (["film", "a", "b", "-o", "film.avi", "--frames", "2", *FEWER], "written as .gif, .apng or .mp4"),
        (["img2img", "a star"], "img2img needs --image: the picture to begin with"),
        (["img2img", "--image", "cat.png"], "img2img needs a prompt"),
        (["inpaint", "a star", "--image", "cat.png", "--mask-image", "nowhere.png"], "nowhere.png is not there"),
        (["variations", "cat.png", "star.jpg"], "variations takes one picture"),
        (["interpolate"], "needs texts or files"),
        (["mix"], "two texts or files or more"),
        (["mix", "a", "b", "--slerp", "3"], "--slerp goes from 0 to 1"),
        (["mix", "a", "b", "--length=-1"], "--length must be above 0"),
        (["mix", "a", "b", "-o", "m.txt"], "ends in .safetensors"),
        (["film", "a", "b", "--fps", "0"], "fps must be from 0.1"),
        (["film", "a", "b", "--fps", "nan"], "fps must be from 0.1"),
        (["film", "a", "b", "--frames", "1"], "two frames or more"),
        (["strip", "a", "b", "-o", "way.jpg"], "written as PNG"),
        (["film", "a", "b", "-o", "cat.png/below/way.gif"], "cannot write into"),
        (["a red circle", "-o", "way.jpg"], "written as PNG"),
        (["doctor", "--dtype", "banana"], "dtype must be one of"),
        (["doctor", "--size", "1"], "height must be"),
        (["inpaint", "a", "--image", "cat.png", "--mask-image", "cat.png", "--mask-mode", "grey"], "invalid choice"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    before = sorted(path.name for path in Path().iterdir())
    monkeypatch.setattr(Kandinsky, "stream_many", lambda *_: pytest.fail("it painted"))
    assert run([*arguments, "--model", "tiny-model"]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == before


def test_an_mp4_is_written_where_ffmpeg_is_and_refused_in_a_sentence_where_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A stand-in for ffmpeg notes how it was called and what came in: whole frames of RGB."""
    tool = tmp_path / "bin" / "ffmpeg"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@" > called\ncat > frames\nfor last; do :; done\necho film > "$last"\n')
    tool.chmod(0o755)
    film = ["film", "a red circle", "a star", *FEWER, "--frames", "2", "-o", "way.mp4"]
    with monkeypatch.context() as path:
        path.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
        done(*film)
    assert Path("frames").stat().st_size == 2 * 64 * 64 * 3
    assert "-s 64x64" in Path("called").read_text() and Path("way.mp4").read_text() == "film\n"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert run([*film, "--model", "tiny-model"]) == 2
    assert "needs the program ffmpeg" in capsys.readouterr().err


def test_replaying_finds_the_pictures_it_began_with_or_asks_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    done("img2img", "a star", "--image", "cat.png", "--strength", "0.6", *FEWER, "-o", "first.png")
    recipe = read_recipe("first.png")
    assert recipe.request.start is not None and recipe.request.start.image.name == "cat.png"
    assert json.loads(recipe.request.to_json())["start"]["image"]["picture"].keys() == {
        "name",
        "height",
        "width",
        "sha256",
    }
    done("replay", "first.png", "-o", "again")
    assert "the pixels are those of first.png" in capsys.readouterr().out
    Path("cat.png").rename("moved.png")
    assert run(["replay", "first.png", "--model", "tiny-model"]) == 2
    assert "pass it with --picture FILE" in capsys.readouterr().err
    done("replay", "first.png", "--picture", "moved.png", "-o", "again")
    Path("star.jpg").rename("cat.png")  # another picture of that name
    assert run(["replay", "first.png", "--model", "tiny-model"]) == 2


def test_every_task_replays_to_the_same_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    """The second of two pictures, which is painted again in its company; the noise is turned to another seed's."""
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    Image.fromarray(mask).save("mask.png")
    done("embed", "a ring", *FEW, "-o", "ring.safetensors")
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
        done(name, *arguments, *varied, *FEWER, "-o", f"{name}.png", "-q")
        capsys.readouterr()
        done("replay", f"{name}-4.png", "-o", "again", "-q")
        assert f"the pixels are those of {name}-4.png\n" in capsys.readouterr().out, name


def test_every_task_paints_from_the_command_line() -> None:
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
        done(name, *arguments, *FEWER, "-o", f"{name}.png", "-q")
    assert size("img2img.png") == (128, 64)
    assert size("outpaint.png") == (96, 64)
