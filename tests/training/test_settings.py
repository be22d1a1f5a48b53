"""Resuming a run: options that are not given are those of its checkpoint, and options that differ are refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kandinsky22.checkpoints import locate
from kandinsky22.training import checkpoints, cli
from kandinsky22.training.loop import Training
from kandinsky22.training.run import resume, run
from kandinsky22.training.settings import Settings, refuse_changes
from tests.compositions.tiny_things import tiny_things
from tests.training.known import RECIPE, line_fit
from tests.training.test_mixture import write_things
from tests.training.test_photos import write_folder


def interrupt(folder: Path, settings: dict[str, object] | None = None) -> None:
    """A run with a checkpoint at step 4 of 8."""
    for line in run(Training(*line_fit(), RECIPE, 8, settings=settings), folder, every=4):
        if line.step == 5:
            break


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 4}, "was started with --batch 8, not with --batch 4; leave it out to resume, or start a new run"),
        ({"seed": 1}, "was started with --seed 0, not with --seed 1"),
        ({"cond_dropout": 0.2}, "was started with --cond-dropout 0.1, not with --cond-dropout 0.2"),
        ({"min_snr": 5.0}, "was started without --min-snr, not with --min-snr 5"),
        ({"decay": False}, "was started with --decay, not with --no-decay"),
        ({"betas": (0.9, 0.98)}, "was started with --betas 0.9 --betas 0.99"),
        (
            {"learning_rate": 0.06},
            r"was started with --learning-rate 0.05, not with --learning-rate 0.06; .* \(or lower it\)",
        ),
    ],
)
def test_resume_refuses_another_recipe_by_option(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    interrupt(tmp_path)
    with pytest.raises(ValueError, match=message):
        resume(Training(*line_fit(), replace(RECIPE, **change), 8), tmp_path)


def test_resume_accepts_a_lower_learning_rate_and_options_for_memory(tmp_path: Path) -> None:
    interrupt(tmp_path)
    lowered = replace(RECIPE, learning_rate=0.01, accumulate=2, checkpointing=True)
    training = Training(*line_fit(), lowered, 8)
    assert resume(training, tmp_path) and training.step == 4
    list(run(training, tmp_path, every=4))
    assert checkpoints.settings(tmp_path)["learning_rate"] == 0.01, "the next resume compares with the lower one"


def test_settings_of_earlier_versions_are_compared_under_their_current_names() -> None:
    refuse_changes({"untold": 0.1, "anew": True}, {"cond_dropout": 0.1, "from_scratch": True})
    with pytest.raises(ValueError, match=r"was started with --cond-dropout 0\.1, not with --cond-dropout 0\.2"):
        refuse_changes({"untold": 0.1}, {"cond_dropout": 0.2})
    with pytest.raises(ValueError, match="was started with --from-scratch, not without --from-scratch"):
        refuse_changes({"anew": True}, {"from_scratch": None})


def test_options_not_given_are_taken_from_the_checkpoint(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run resumed with its folder alone reaches the same weights as one with all options."""
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    data = ["--data", str(write_folder(tmp_path / "pictures", 5)), "--start-from", str(tiny_model)]
    options = ["--batch", "3", "--seed", "5", "--warmup", "1", "--no-decay", "--ema-decay", "0.9"]
    cli.main(["movq", "--folder", str(uninterrupted), "--steps", "4", "--every", "2", *data, *options])
    shutil.copytree(uninterrupted, resumed, ignore=shutil.ignore_patterns("model", "added", "00000004"))
    capsys.readouterr()
    cli.main(["movq", "--folder", str(resumed), "--every", "1"])
    assert re.search(r"step 3 of 4, \d+ (seconds|minutes) left: loss", capsys.readouterr().out), "without a terminal"
    weights = [
        load_file(next((f / "model" / "decoder" / "movq").glob("*.safetensors"))) for f in (uninterrupted, resumed)
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    with pytest.raises(ValueError, match="was started with --batch 3, not with --batch 2"):
        cli.main(["movq", "--folder", str(resumed), "--batch", "2"])


def write_checkpoint(folder: Path, settings: Settings) -> None:
    """A checkpoint of a decoder's run, of which only the settings are needed."""
    checkpoint = folder / "decoder" / checkpoints.FOLDER / "00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / checkpoints.STATE).write_text(
        json.dumps({"step": 4, "steps": 8, "learnt_from": {}, "settings": settings})
    )


@pytest.fixture
def mixture_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a run of the decoder on a mixture of two folders in `run`."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    args, recipe, _ = cli.configure(
        ["decoder", "--data", "a:3", "--data", "b:1", "--side", "64", "--folder", "run", "--learning-rate", "1e-3"]
    )
    write_checkpoint(tmp_path / "run", cli.settings(args, recipe))
    return tmp_path


def test_mixture_and_its_weights_are_taken_from_the_checkpoint(mixture_run: Path) -> None:
    args, recipe, _ = cli.configure(["decoder", "--folder", "run"])
    dataset = cli.dataset_config(args)
    assert dataset is not None
    assert [(source.path.name, source.weight) for source in dataset.sources] == [("a", 3.0), ("b", 1.0)]
    assert (recipe.side, recipe.runs["decoder"].learning_rate, recipe.runs["decoder"].batch) == (64, 1e-3, 16)


@pytest.mark.parametrize(
    "options",
    [
        ["--data", "a:3", "--data", "b:1", "--start-from", "box", "--batch", "16"],
        ["--learning-rate", "1e-4", "--accumulate", "4", "--every", "5"],
    ],
)
def test_resume_accepts_equal_options_and_those_that_change_no_numbers(mixture_run: Path, options: list[str]) -> None:
    cli.configure(["decoder", "--folder", "run", *options])


@pytest.mark.parametrize(
    "stored", [{"batch": "8"}, {"batch": True}, {"data": "a"}, {"data": [1]}, {"recipe": {}}, {"betas": [0.9]}], ids=str
)
def test_a_checkpoint_with_values_of_other_types_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "run", stored)
    with pytest.raises(ValueError, match=f"the last checkpoint in run/decoder has {next(iter(stored))} "):
        cli.configure(["decoder", "--folder", "run"])


def test_a_checkpoint_sets_no_option_that_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "run", {"folder": "elsewhere", "processes": 9, "recipe": "box"})
    write_things(tiny_things(), tmp_path / "run" / "things")
    args, _, _ = cli.configure(["decoder", "--folder", "run"])
    assert args.folder == Path("run") and args.processes == 1


def test_options_of_an_earlier_version_are_taken_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions store `cond_dropout` as `untold`, and `from_scratch` as `anew`."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "run", {"untold": 0.2, "anew": True, "recipe": "box"})
    write_things(tiny_things(), tmp_path / "run" / "things")
    args, recipe, _ = cli.configure(["decoder", "--folder", "run"])
    assert cli.is_from_scratch(args) and recipe.runs["decoder"].cond_dropout == 0.2
    with pytest.raises(ValueError, match=r"was started with --cond-dropout 0\.2, not with --cond-dropout 0\.1"):
        cli.configure(["decoder", "--folder", "run", "--cond-dropout", "0.1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "a:1", "--data", "b:3"], r"was started with --data \S+a:3 --data \S+b:1, not with --data \S+a:1"),
        (["--data", "a"], "was started with --data"),
        (["--side", "128"], "was started with --side 64, not with --side 128"),
        (["--min-side", "32"], "was started with --min-side 0, not with --min-side 32"),
        (["--licence", "cc0"], "was started without --licence, not with --licence cc0"),
        (["--from-scratch"], "was started without --from-scratch, not with --from-scratch"),
        (["--predict", "epsilon"], "was started with --predict v_prediction, not with --predict epsilon"),
        (["--batch", "4"], "was started with --batch 16, not with --batch 4"),
        (["--start-from", "twin"], r"was started with --start-from box, not with --start-from \S+twin"),
        (["--learning-rate", "1e-2"], "was started with --learning-rate 0.001"),
    ],
)
def test_options_that_differ_from_the_checkpoint_are_refused(
    mixture_run: Path, options: list[str], message: str
) -> None:
    (mixture_run / "twin").symlink_to(locate.model_folder("box"))
    with pytest.raises(ValueError, match=message) as error:
        cli.main(["decoder", "--folder", "run", *options])
    assert "\n" not in str(error.value)
