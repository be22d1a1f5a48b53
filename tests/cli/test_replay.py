"""`kandinsky22 show` and `replay` on a real model: recipes, identical pixels, and explained differences."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from kandinsky22.cli.app import run
from kandinsky22.imaging.file_texts import RECIPE
from kandinsky22.imaging.images import read_recipe
from kandinsky22.request.tasks import text2img
from tests.loras_on_disk import write_lora

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def painted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures painted in one batch by the command line."""
    folder = tmp_path_factory.mktemp("painted")
    model = shutil.copytree(tiny_model, folder / "model")
    assert run(["a red circle", "--model", str(model), "-n", "3", "--seed", "5", "-o", str(folder / "out"), "-q"]) == 0
    return [folder / "out" / f"a-red-circle-{seed}.png" for seed in (5, 6, 7)]


def model_of(painted: list[Path]) -> str:
    """The folder of the model that painted the pictures."""
    return str(painted[0].parents[1] / "model")


def test_show_prints_the_request_and_its_circumstances(painted: list[Path], capsys: Capture) -> None:
    assert run(["show", str(painted[1])]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert (lines["prompt:"], lines["seed:"], lines["size:"]) == ("a red circle", "6", "64x64")
    assert lines["decoder:"] == "ddpm, 3 steps, guidance 2.0"
    assert lines["dtype:"] == "float32" and lines["weights:"].startswith("unet ")


def test_show_prints_the_recipe_as_json(painted: list[Path], capsys: Capture) -> None:
    assert run(["show", "--json", str(painted[1])]) == 0
    recipe = json.loads(capsys.readouterr().out)
    assert recipe["request"]["seed"] == 6
    assert recipe["made_by"]["batch"] == {"index": 1, "of": 3}


def test_replay_paints_the_same_pixels(painted: list[Path], tmp_path: Path, capsys: Capture) -> None:
    """Each in a batch of the same size, which influences the last bit."""
    for path in painted:
        assert run(["replay", str(path), "--model", model_of(painted), "-o", str(tmp_path), "-q"]) == 0
        path_again, verdict = capsys.readouterr().out.splitlines()
        assert verdict == f"the pixels are those of {path}"
        assert Image.open(path_again).tobytes() == Image.open(path).tobytes()
        assert read_recipe(path_again) == read_recipe(path)


def test_replay_asks_for_a_model_that_it_does_not_find(painted: list[Path], capsys: Capture) -> None:
    assert run(["replay", str(painted[0])]) == 2
    err = capsys.readouterr().err
    assert "painted by a model called 'model'; pass its folder with --model" in err and len(err.splitlines()) == 1


def test_replay_says_which_weights_differ(painted: list[Path], tmp_path: Path, capsys: Capture) -> None:
    model = shutil.copytree(painted[0].parents[1] / "model", tmp_path / "model")
    weights = model / "decoder" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"] += 0.1
    save_file(tensors, weights, metadata={"format": "pt"})
    assert run(["replay", str(painted[0]), "--model", str(model), "-o", str(tmp_path), "-q"]) == 0
    _, difference, verdict = capsys.readouterr().out.splitlines()
    assert difference.startswith("weights of the unet: ") and " then, " in difference
    assert verdict.startswith("the pixels differ from ")


def test_replay_says_that_the_dtype_differs(painted: list[Path], tmp_path: Path, capsys: Capture) -> None:
    assert (
        run(["replay", str(painted[0]), "--model", model_of(painted), "--dtype", "bfloat16", "-o", str(tmp_path), "-q"])
        == 0
    )
    assert "dtype: float32 then, bfloat16 now" in capsys.readouterr().out.splitlines()


def with_made_by(path: Path, to: Path, **made_by: Any) -> Path:
    """A copy of a picture with other `made_by` values in its recipe."""
    recipe = read_recipe(path)
    info = PngImagePlugin.PngInfo()
    values = {"request": json.loads(recipe.request.to_json()), "made_by": {**recipe.made_by, **made_by}}
    info.add_itxt(RECIPE, json.dumps(values))
    Image.open(path).save(to, pnginfo=info)
    return to


def test_replay_says_which_versions_differ(painted: list[Path], tmp_path: Path, capsys: Capture) -> None:
    old = with_made_by(painted[0], tmp_path / "old.png", torch="1.0", kandinsky22="0.0.1", threads=4096, device="tpu")
    assert run(["replay", str(old), "--model", model_of(painted), "-o", str(tmp_path / "out"), "-q"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert f"torch: 1.0 then, {torch.__version__} now" in out
    assert "kandinsky22: 0.0.1 then, 0.1.0 now" in out
    assert f"threads: 4096 then, {torch.get_num_threads()} now" in out
    assert "device: tpu then, cpu now" in out or "device: tpu then, cuda now" in out


def test_replay_detects_an_edited_picture(painted: list[Path], tmp_path: Path, capsys: Capture) -> None:
    edited = with_made_by(painted[0], tmp_path / "edited.png")
    with Image.open(edited) as image:
        image.load()
    image.putpixel((3, 3), (255, 0, 255))
    info = PngImagePlugin.PngInfo()
    info.add_itxt(RECIPE, getattr(image, "text")[RECIPE])  # noqa: B009
    image.save(edited, pnginfo=info)
    assert run(["replay", str(edited), "--model", model_of(painted), "-o", str(tmp_path / "out"), "-q"]) == 1
    assert "was the file edited?" in capsys.readouterr().out


@pytest.mark.parametrize(
    "batch", [{"index": 9, "of": 3}, {"index": 0, "of": "3"}, {"index": 6, "of": 9}, [], "x", {"of": 2}]
)
def test_replay_tolerates_malformed_made_by_values(painted: list[Path], tmp_path: Path, batch: Any) -> None:
    strange = with_made_by(painted[0], tmp_path / "strange.png", batch=batch, threads="many", dtype=None)
    assert run(["replay", str(strange), "--model", model_of(painted), "-o", str(tmp_path / "out"), "-q"]) == 0


@pytest.mark.parametrize("command", ["show", "replay"])
def test_files_without_a_request_are_refused(tmp_path: Path, capsys: Capture, command: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    (tmp_path / "text.png").write_text("no picture")
    hostile = PngImagePlugin.PngInfo()
    hostile.add_itxt(RECIPE, json.dumps({"request": {"condition": {"prompt": "x"}}, "made_by": [1]}))
    Image.new("RGB", (8, 8)).save(tmp_path / "hostile.png", pnginfo=hostile)
    messages = {
        "bare.png": "carries no request",
        "text.png": "it is not a complete picture",
        "none.png": "does not exist",
        "hostile.png": "carries a request that cannot be read",
    }
    for name, sentence in messages.items():
        assert run([command, str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert sentence in err and len(err.splitlines()) == 1


def test_show_escapes_control_characters(tmp_path: Path, capsys: Capture) -> None:
    info = PngImagePlugin.PngInfo()
    request = json.loads(text2img("\x1b[2J\x1b]0;owned\x07\n fake: line", seed=1).to_json())
    info.add_itxt(RECIPE, json.dumps({"request": request, "made_by": {"torch": "\x1b[31m"}}))
    Image.new("RGB", (8, 8)).save(tmp_path / "hostile.png", pnginfo=info)
    assert run(["show", str(tmp_path / "hostile.png")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\n fake" not in out


@pytest.mark.parametrize(
    ("name", "value"), [("threads", True), ("batch", {"index": False, "of": True}), ("device", [1]), ("dtype", {})]
)
def test_replay_ignores_values_of_another_type(name: str, value: Any, painted: list[Path], tmp_path: Path) -> None:
    with Image.open(painted[0]) as image:
        image.load()
        recipe = json.loads(image.text[RECIPE])  # type: ignore[attr-defined]
        recipe["made_by"][name] = value
        info = PngImagePlugin.PngInfo()
        info.add_itxt(RECIPE, json.dumps(recipe))
        image.save(tmp_path / "changed.png", pnginfo=info)
    assert run(["replay", str(tmp_path / "changed.png"), "--model", model_of(painted), "-o", str(tmp_path)]) == 0


def test_replay_finds_the_loras_of_a_picture_or_names_them(tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    style = write_lora(tmp_path / "style.safetensors", tiny_model)
    model = ["--model", str(tiny_model), "-q"]
    assert run(["a red circle", *model, "--lora", f"{style}:0.5", "-o", str(tmp_path), "--seed", "5"]) == 0
    (path,) = capsys.readouterr().out.splitlines()
    assert run(["show", path]) == 0
    assert re.search(r"loras: +style \([0-9a-f]{8}\) at 0.5", capsys.readouterr().out)
    again = ["replay", path, *model, "-o", str(tmp_path / "again")]
    assert run(again) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"the pixels are those of {path}"
    moved = style.rename(tmp_path.parent / "moved.safetensors")
    assert run(again) != 0
    assert "the LoRA 'style'" in capsys.readouterr().err
    assert run([*again, "--lora", str(moved)]) == 0
