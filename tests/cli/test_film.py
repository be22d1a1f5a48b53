"""`kandinsky22 strip` and `film` on a small random model."""

import os
from pathlib import Path

import pytest
from PIL import Image

from kandinsky22.cli.app import run
from kandinsky22.imaging.images import read_recipe
from tests.cli.workspace import FEW_STEPS, size, succeed

pytestmark = pytest.mark.usefixtures("workspace")


def test_strip_is_a_row_of_frames_and_film_is_animated(capsys: pytest.CaptureFixture[str]) -> None:
    succeed("strip", "a red circle", "cat.png", *FEW_STEPS, "--frames", "3", "-o", "frames.png")
    assert size("frames.png") == (3 * 64, 64)
    for name in ("frames.gif", "frames.apng"):
        succeed(
            "film", "a red circle", "cat.png", "a star", *FEW_STEPS, "--frames", "4", "--loop", "--fps", "8", "-o", name
        )
        with Image.open(name) as film:
            assert (film.n_frames, film.info["loop"], film.info["duration"]) == (4, 0, pytest.approx(125, abs=5))  # type: ignore[attr-defined]


def test_mp4_is_written_by_ffmpeg_and_refused_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A fake ffmpeg records its arguments and its input, which is complete RGB frames."""
    tool = tmp_path / "bin" / "ffmpeg"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@" > called\ncat > frames\nfor last; do :; done\necho film > "$last"\n')
    tool.chmod(0o755)
    film = ["film", "a red circle", "a star", *FEW_STEPS, "--frames", "2", "-o", "frames.mp4"]
    with monkeypatch.context() as path:
        path.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
        succeed(*film)
    assert Path("frames").stat().st_size == 2 * 64 * 64 * 3
    assert "-s 64x64" in Path("called").read_text() and Path("frames.mp4").read_text() == "film\n"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert run([*film, "--model", "tiny-model"]) == 2
    assert "needs the program ffmpeg" in capsys.readouterr().err


def test_noise_is_fixed_or_rotating(capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for noise in ("fixed", "rotating"):
        paths.append(f"{noise}.png")
        succeed("strip", "a red circle", "cat.png", *FEW_STEPS, "--frames", "3", "--noise", noise, "-o", paths[-1])
    assert Path(paths[0]).read_bytes() != Path(paths[1]).read_bytes()
    capsys.readouterr()
    assert run(["strip", "a", "b", "--noise", "held", "--model", "tiny-model"]) == 2
    assert "invalid choice: 'held'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "output"), [("strip", "a.png"), ("strip", "a.webp"), ("film", "a.gif"), ("film", "a.apng")]
)
def test_strips_and_films_tell_their_seed_and_contain_their_request(
    capsys: pytest.CaptureFixture[str], name: str, output: str
) -> None:
    assert (
        run([name, "a red circle", "cat.png", *FEW_STEPS, "--frames", "2", "--model", "tiny-model", "-o", output]) == 0
    )
    out, err = capsys.readouterr()
    recipe = read_recipe(output)
    assert out == f"{output}\n"
    assert f'painting 2 frames from "a red circle" to "the picture cat.png", 64x64, seed {recipe.request.seed}' in err
    assert recipe.layout == {"kind": name, "frames": 2}
    assert recipe.made_by["weights"] and [type(part).__name__ for part in recipe.request.condition.parts] == [
        "Text",
        "Picture",
    ]  # type: ignore[union-attr]
    assert run(["show", output]) == 0
    assert "of:             a red circle to the picture cat.png" in capsys.readouterr().out
    assert run(["replay", output]) == 2
    assert f"is a {name} of several pictures" in capsys.readouterr().err
