"""Bad input on a real model: one clear sentence, exit status 2, and no file is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kandinsky22.cli.app import run
from tests.cli.fake_backend import files

UNET = Path("decoder/unet/diffusion_pytorch_model.safetensors")
Capture = pytest.CaptureFixture[str]


def error_of(capsys: Capture, *arguments: str) -> str:
    """The one line about the error of a command line that fails, which is its last."""
    assert run(arguments) == 2
    *chatter, last = capsys.readouterr().err.splitlines()
    assert last.startswith("kandinsky22: ") and not any(line.startswith("kandinsky22: ") for line in chatter), chatter
    return last


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["--steps", "0"], "steps must be a whole number from 1 to 1000, got 0; try 25"),
        (["--prior-num-inference-steps", "0"], "steps must be"),
        (["--sampler", "eulr"], "sampler must be one of ddpm, unclip, ddim, euler, dpmpp_2m, unipc, heun, got 'eulr'"),
        (["--size", "63"], "height must be a whole number from 64 up, got 63; try 64"),
        (["--width", "-64"], "width must be"),
        (["--size", "8192x8192", "-n", "256"], "ask for smaller pictures, or fewer at a time"),
        (["-n", "0"], "num_images must be"),
        (["--seed", "-1"], "seed must be a whole number from 0"),
        (["--seed", "99999999999999999999"], "seed must be"),
        (["--guidance-scale", "nan"], "guidance_scale must be 0 or more"),
        (["--guidance-scale=-0.5"], "guidance_scale must be 0 or more"),
        (["--model", "nowhere"], "there is no model 'nowhere'"),
        (["--device", "warp"], "the device 'warp' cannot be used here; try cpu"),
        (["--dtype", "float8"], "dtype must be one of"),
        (["--output", "file/out"], "cannot write into file/out: Not a directory; choose another place with --output"),
        (["--output", "file/cat.png"], "cannot write into file"),
        (["--output", "file"], "cannot write into file"),
    ],
)
def test_impossible_options_are_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, typed: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert sentence in error_of(capsys, "a red circle", "--model", str(tiny_model), *typed)
    assert files(tmp_path) == ["file"] and not Path("out").exists()


def test_published_weights_without_a_hub_explain_what_to_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """First what would be downloaded and its size, then what to do instead."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "cache"))
    assert run(["a cat", "--model", "kandinsky-2.2", "--output", str(tmp_path / "out")]) == 2
    plan, sentence = capsys.readouterr().err.splitlines()
    assert plan.startswith("fetching kandinsky-2.2: 15.9 GB in 19 files")  # with the image encoder: no negative prompt
    assert sentence.startswith("kandinsky22: ") and "no hub can be reached" in sentence and "--local-dir" in sentence
    assert run(["a cat", "--negative-prompt", "a dog", "--model", "kandinsky-2.2", "-o", str(tmp_path / "out")]) == 2
    assert "12.2 GB in 17 files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_full_disk_is_reported_before_painting(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    assert "No space left on device" in error_of(capsys, "a red circle", "--model", str(tiny_model))
    assert files(tmp_path) == []


def make_infinite(path: Path) -> None:
    tensors = load_file(path)
    tensors["conv_out.bias"][0] = torch.inf
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "has no weights; it should contain"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "is damaged or incomplete"),
        (lambda path: path.write_bytes(path.read_bytes()[:4]), "is damaged or incomplete"),
        (lambda path: path.write_bytes(b""), "is damaged or incomplete"),
        (lambda path: (path.parent / "config.json").unlink(), "config.json is missing"),
        (lambda path: (path.parent / "config.json").write_text("{"), "cannot be read"),
        (lambda path: shutil.rmtree(path.parents[1]), "it lacks the folder decoder/"),
        (
            make_infinite,
            "diffusion_pytorch_model.safetensors cannot be read (conv_out.bias has numbers that are not finite)",
        ),
    ],
    ids=["missing", "truncated", "stub", "empty", "no config", "broken config", "no decoder", "not finite"],
)
def test_damaged_weights_are_refused(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    damage: Callable[[Path], object],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    damage(model / UNET)
    before = files(tmp_path)
    assert sentence in error_of(capsys, "a red circle", "--model", str(model), "--seed", "1")
    assert files(tmp_path) == before and not Path("out").exists()


def test_too_long_prompt_gives_a_notice_with_the_dropped_words(
    tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    prompt = " ".join(["a red circle over"] * 20 + ["a blue triangle"])
    assert run([prompt, "--model", str(tiny_model), "-o", str(tmp_path), "-q"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "the prompt is too long for this model; it does not see:" in err and err.endswith("a blue triangle\n")


def test_unknown_words_of_a_prompt_give_one_notice(tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(["a purple elephant", "--model", str(tiny_model), "-o", str(tmp_path), "-q"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert len(err.splitlines()) == 1 and "was not trained on elephant" in err and "--model kandinsky-2.2" in err


def test_serving_from_the_home_folder_of_an_unknown_user_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert "~nosuchuser/x begins with the home folder" in error_of(capsys, "serve", "--data", "~nosuchuser/x")
    monkeypatch.setenv("XDG_DATA_HOME", "~nosuchuser")
    monkeypatch.delenv("KANDINSKY22_DATA", raising=False)
    assert "~nosuchuser begins with the home folder" in error_of(capsys, "serve", "--model", "box")
