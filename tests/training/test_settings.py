"""A run goes on by what it was begun with: what is not said is taken from its checkpoint, what is said and differs refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kandinsky22.training import checkpoints, cli
from kandinsky22.training.loop import Training
from kandinsky22.training.recipes import BOX
from kandinsky22.training.run import resume, run
from tests.training.known import RECIPE, line_fit
from tests.training.test_model_trainer import SHORT


def stopped(folder: Path, settings: dict[str, object] | None = None) -> None:
    """A run that was stopped at step 4 of 8."""
    for line in run(Training(*line_fit(), RECIPE, 8, settings=settings), folder, every=4):
        if line["step"] == 5:
            break


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch": 4}, "began with --batch 8, and not with --batch 4; leave it out to go on, or begin anew"),
        ({"seed": 1}, "began with --seed 0, and not with --seed 1"),
        ({"untold": 0.2}, "began with --untold 0.1, and not with --untold 0.2"),
        ({"min_snr": 5.0}, "began without --min-snr, and not with --min-snr 5"),
        ({"decay": False}, "began with --decay, and not with --no-decay"),
        ({"betas": (0.9, 0.98)}, "began with --betas 0.9 --betas 0.99"),
        (
            {"learning_rate": 0.06},
            r"began with --learning-rate 0.05, and not with --learning-rate 0.06; .* \(or lower it\)",
        ),
    ],
)
def test_another_recipe_is_refused_by_name(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    stopped(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        resume(Training(*line_fit(), replace(RECIPE, **change), 8), tmp_path)


def test_a_lower_rate_and_what_changes_no_numbers_are_gone_on_with(tmp_path: Path) -> None:
    stopped(tmp_path)
    lowered = replace(RECIPE, learning_rate=0.01, accumulate=2, checkpointing=True)
    training = Training(*line_fit(), lowered, 8)
    assert resume(training, tmp_path) and training.step == 4
    list(run(training, tmp_path, every=4))
    assert checkpoints.settings(tmp_path)["learning_rate"] == 0.01, "it is the lower one that it goes on by from now on"


def test_what_is_not_said_is_what_the_run_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights, as if everything had been said again."""
    monkeypatch.setattr(cli, "BOX", SHORT)
    monkeypatch.setattr("kandinsky22.training.precompute.HELD_OUT", 16)
    whole, other = tmp_path / "whole", tmp_path / "other"
    said = ["--batch", "3", "--seed", "5", "--warmup", "1", "--no-decay", "--ema-decay", "0.9"]
    cli.main(["movq", "--folder", str(whole), "--steps", "4", "--every", "2", *said])
    shutil.copytree(whole, other, ignore=shutil.ignore_patterns("model", "added", "00000004"))
    capsys.readouterr()
    cli.main(["movq", "--folder", str(other), "--every", "1"])
    assert re.search(r"step 3 of 4, \d+ (seconds|minutes) left: loss", capsys.readouterr().out), (
        "without a terminal, too"
    )
    reached = [load(folder / "model" / "decoder" / "movq") for folder in (whole, other)]
    assert all(torch.equal(value, reached[1][name]) for name, value in reached[0].items())
    with pytest.raises(ValueError, match="began with --batch 3, and not with --batch 2"):
        cli.main(["movq", "--folder", str(other), "--batch", "2"])


def load(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A decoder's run on a mixture, with a checkpoint; and what `train` would be called with instead of training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "BOX", BOX)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    written: list[Any] = []
    monkeypatch.setattr(cli, "train", lambda *arguments: written.append(arguments))
    cli.main(
        ["decoder", "--data", "a:3", "--data", "b:1", "--side", "64", "--folder", "run", "--learning-rate", "1e-3"]
    )
    chosen, recipe, *_ = written[0]
    checkpoint = tmp_path / "run" / "decoder" / checkpoints.FOLDER / "00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / checkpoints.STATE).write_text(json.dumps({"settings": cli.settings(chosen, recipe)}))
    monkeypatch.setattr(cli, "train", lambda *arguments: written.__setitem__(slice(None), [arguments]))
    monkeypatch.setattr(cli, "written", written, raising=False)
    return tmp_path


def test_a_mixture_is_taken_from_the_checkpoint_with_its_weights(begun: Path) -> None:
    cli.main(["decoder", "--folder", "run"])
    chosen, recipe, *_ = cli.written[0]  # type: ignore[attr-defined]
    assert [(source.path.name, source.weight) for source in cli.own(chosen).sources] == [("a", 3.0), ("b", 1.0)]  # type: ignore[union-attr]
    assert (recipe.side, recipe.runs["decoder"].learning_rate, recipe.runs["decoder"].batch) == (64, 1e-3, 16)
    cli.main(["decoder", "--folder", "run", "--data", "a:3", "--data", "b:1", "--start-from", "box", "--batch", "16"])
    cli.main(["decoder", "--folder", "run", "--learning-rate", "1e-4", "--accumulate", "4", "--every", "5"])


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (["--data", "a:1", "--data", "b:3"], r"began with --data \S+a:3 --data \S+b:1, and not with --data \S+a:1"),
        (["--data", "a"], "began with --data"),
        (["--side", "128"], "began with --side 64, and not with --side 128"),
        (["--min-side", "32"], "began with --min-side 0, and not with --min-side 32"),
        (["--licence", "cc0"], "began without --licence, and not with --licence cc0"),
        (["--anew"], "began without --anew, and not with --anew"),
        (["--predict", "epsilon"], "began with --predict v_prediction, and not with --predict epsilon"),
        (["--batch", "4"], "began with --batch 16, and not with --batch 4"),
        (["--start-from", "twin"], r"began with --start-from box, and not with --start-from \S+twin"),
        (["--learning-rate", "1e-2"], "began with --learning-rate 0.001"),
    ],
)
def test_what_is_said_and_differs_is_refused_before_anything_is_read(
    begun: Path, said: list[str], sentence: str
) -> None:
    from kandinsky22.checkpoints import locate

    (begun / "twin").symlink_to(locate.model_folder("box"))
    with pytest.raises(ValueError, match=sentence) as refused:
        cli.main(["decoder", "--folder", "run", *said])
    assert "\n" not in str(refused.value)
